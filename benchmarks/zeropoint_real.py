"""Zero points of real stars: the LCO catalogue with four bands, and three WIRCam epochs against each other.

``python benchmarks/zeropoint_real.py FOLDER`` writes ``results/zeropoint_real.json``; FOLDER holds ``banzai`` and
``cfht_wircam``. For each band of the LCO catalogue the quoted error is compared with a bootstrap; the image is i-like,
and the other bands show what a wrong band looks like. WIRCam frames go through `csstdask run` with the default
settings, and each epoch is the reference of the next.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from environment import save

from csstdask.evaluation.io import round_floats
from csstdask.numerics.robust import mad_scale
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.run import run
from csstdask.store.tables import read_table
from csstdask.zeropoint.fit_stars import bootstrap_sigma, fit_stars
from csstdask.zeropoint.matching import match_sources
from csstdask.zeropoint.photometry import instrumental_magnitude

LCO = "banzai/cpt1m012-fa06-20200113-0102-matched-cat.fits"
LEAST_SNR = 20.0
RESAMPLINGS = 400
WIRCAM_SHAPE = (2048, 2048)


def lco_bands(path: Path) -> dict[str, Any]:
    table = Table.read(path)
    column = {name: np.asarray(table[name], dtype=np.float64) for name in table.colnames}
    with np.errstate(divide="ignore", invalid="ignore"):
        good = (column["flag"] == 0) & (column["flux"] > LEAST_SNR * column["fluxerr"])
    column = {name: values[good] for name, values in column.items()}
    inst_mag, inst_mag_err = instrumental_magnitude(column["flux"], column["fluxerr"])
    shared = {"inst_mag": inst_mag, "inst_mag_err": inst_mag_err, "x": column["x"], "y": column["y"]}
    found = {}
    for band in "griz":
        stars = shared | {"ref_mag": column[f"{band}mag"], "ref_mag_err": column[f"{band}magerr"]}
        stars |= {"color": column["gmag"] - column["rmag"]}
        fit = fit_stars(**stars)
        plain = fit_stars(**{name: values for name, values in stars.items() if name != "color"})
        found[band] = {
            "zero_point": fit.value,
            "sigma": fit.sigma,
            "sigma_bootstrap": bootstrap_sigma(RESAMPLINGS, 1, **stars),
            "n_matched": fit.n_matched,
            "n_used": fit.n_used,
            "mad": float(mad_scale(fit.residuals)),
            "mad_without_color_term": float(mad_scale(plain.residuals)),
            "scatter": fit.scatter,
            "color_term": fit.color_term,
            "color_term_err": fit.color_term_err,
        }
    return found


def wircam_epochs(folder: Path) -> dict[str, Any]:
    frames = sorted(folder.glob("wircam_H2_*.fits.fz"))
    tables = {}
    with tempfile.TemporaryDirectory() as place:
        campaign, store = Path(place) / "campaign.zarr", Path(place) / "run.zarr"
        ingest([str(path) for path in frames], campaign)
        run(campaign, store, steps=["sources"])
        for path in sorted(store.glob("tables/sources/*/*.parquet")):
            table = read_table(path)
            good = (table["flag"] == 0) & (table["flux_aperture"] > LEAST_SNR * table["flux_aperture_err"])
            names = ("ra", "dec", "x", "y", "flux_aperture", "flux_aperture_err")
            tables[path.parent.name] = {name: table[name][good] for name in names}
    pairs, found = {}, {}
    for first, second in itertools.combinations(tables, 2):
        one, two = tables[first], tables[second]
        match = match_sources(two["ra"], two["dec"], one["ra"], one["dec"])
        rows = match.reference >= 0
        reference, sources = (
            {k: v[some] for k, v in t.items()} for t, some in ((one, match.reference[rows]), (two, rows))
        )
        ref_mag, ref_mag_err = instrumental_magnitude(reference["flux_aperture"], reference["flux_aperture_err"])
        inst_mag, inst_mag_err = instrumental_magnitude(sources["flux_aperture"], sources["flux_aperture_err"])
        stars = {
            "inst_mag": inst_mag, "inst_mag_err": inst_mag_err, "ref_mag": ref_mag, "ref_mag_err": ref_mag_err,
            "x": sources["x"], "y": sources["y"],
        }  # fmt: skip
        fit = fit_stars(**stars, shape=WIRCAM_SHAPE)
        used = fit.weights > 0
        quoted = float((fit.residuals[used] ** 2 / (inst_mag_err**2 + ref_mag_err**2)[used]).sum())
        pairs[first, second] = fit
        found[f"{first} {second}"] = {
            "relative_zero_point": fit.value,
            "sigma": fit.sigma,
            "sigma_bootstrap": bootstrap_sigma(RESAMPLINGS, 1, **stars),
            "n_used": fit.n_used,
            "scatter": fit.scatter,
            "chi2_per_dof": fit.chi2 / fit.dof,
            "chi2_per_dof_of_quoted_errors_alone": quoted / fit.dof,
            "wcs_shift_arcsec": list(match.shift),
        }
    a, b, c = tables
    closure = pairs[a, b].value + pairs[b, c].value - pairs[a, c].value
    error = float(np.sqrt(sum(one.sigma**2 for one in pairs.values())))
    return {"pairs": found, "closure": closure, "closure_sigma": error}


def main() -> None:
    folder = Path(sys.argv[1])
    result = {"lco": lco_bands(folder / LCO), "wircam": wircam_epochs(folder / "cfht_wircam")}
    save("zeropoint_real", round_floats(result))


if __name__ == "__main__":
    main()
