"""Tables of SEDs predicted from spectra."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from committed import load, table

BANDS = ("GU", "GV", "GI")
#: Length of a line of text.
_LINE = 130
_SETS = {
    "population": "population", "training_cells": "training cells alone", "test_cells": "held-out cells alone"
}  # fmt: skip


def _with_note(head: list[str], rows: list[list[Any]], note: str) -> str:
    return f"{table(head, rows)}\n\n{textwrap.fill(note, _LINE, break_on_hyphens=False)}"


def _errors(bands: dict[str, dict[str, float]], kind: str = "rms") -> list[str]:
    return [f"{bands[band][kind]:.4f}" for band in BANDS]


def held_out() -> str:
    """Errors on held-out cells, for each method and signal-to-noise ratio."""
    found = load("sed")["held_out"]
    snrs = list(found["errors"])
    rows = [
        [name, *("/".join(_errors(found["errors"][snr][name])) for snr in snrs)] for name in found["errors"][snrs[0]]
    ]
    if "ratio" in found:
        rows.append(
            ["sed / uaranet", *("/".join(f"{found['ratio'][snr][band]['rms']:.2f}" for band in BANDS) for snr in snrs)]
        )
    note = f"{found['stars']} stars of {found['cells']} cells; rms relative error in GU/GV/GI."
    return _with_note(["method", *(f"SNR {snr}" for snr in snrs)], rows, note)


def by_teff() -> str:
    """Errors at 6000 and 8000 K next to the published ones."""
    found = load("sed")["held_out"]
    rows = []
    for teff, by_snr in found["by_teff"].items():
        for snr, methods in by_snr.items():
            paper = found["paper"][teff].get(snr)
            rows.append(
                [
                    f"{teff} K", snr,
                    *("/".join(_errors(methods[name])) for name in ("sed", "uaranet")),
                    "/".join(f"{one:.4f}" for one in paper) if paper else "",
                ]
            )  # fmt: skip
    return table(["Teff", "SNR", "sed", "uaranet, trained here", "paper (BOSZ)"], rows)


def calibration() -> str:
    """Calibration of sigmas on synthetic stars."""
    found = load("sed")["calibration"]
    rows = []
    for cells, what in _SETS.items():
        for name, one in found[cells].items():
            every = one["all"]
            rows.append(
                [
                    f"{name}, {what}",
                    f"{every['ks']:.3f}", f"{100 * every['coverage_68']:.1f}", f"{100 * every['coverage_95']:.1f}",
                    f"{every['robust_sd']:.2f}", f"{one['cells']['failed']} of {one['cells']['tests']}",
                    f"{one['cells']['worst']:.3f}", f"{one['crps']:.4f} ({one['crps_constant_sigma']:.4f})",
                ]
            )  # fmt: skip
    head = [
        "model, stars", "KS of the PIT", "in 68 % [%]", "in 95 % [%]", "robust SD", "tests failed", "largest miss",
        "CRPS (constant sigma)",
    ]  # fmt: skip
    note = (
        f"{found['stars']} stars for each row, SNR 10, 20, 40 and 80. Of the population, "
        f"{100 * found['share_of_test_cells']:.0f} % are stars of held-out cells. Robust SD: of pulls. "
        "Largest miss: of the coverage of a cell. CRPS: in brackets with one sigma for all stars."
    )
    return _with_note(head, rows, note)


def calspec() -> str:
    """Errors on CALSPEC stars."""
    found = load("sed")["calspec"]
    rows = [[name, *_errors(bands), *_errors(bands, "robust")] for name, bands in found["errors"].items()]
    head = ["method", *(f"{band}, rms" for band in BANDS), *(f"{band}, robust" for band in BANDS)]
    against = "; ".join(
        f"{band} {one['ratio']:.2f} ({one['interval_68'][0]:.2f} to {one['interval_68'][1]:.2f})"
        for band, one in found["against_knn"].items()
    )
    pulls = found["calibration"]
    text = (
        f"`sed` / kNN + correction, rms, central 68 % of a paired bootstrap of stars: {against}. Coverage of `sed`: "
        f"68 %: {_interval(pulls, 'coverage_68')}; 95 %: {_interval(pulls, 'coverage_95')}; robust SD of pulls "
        f"{pulls['all']['robust_sd']:.2f}; beyond 3 sigma {100 * pulls['all']['beyond_3']:.1f} %."
    )
    return _with_note(head, rows, f"{found['stars']} stars. {text}")


def _interval(pulls: dict[str, Any], key: str) -> str:
    low, high = pulls[f"{key}_interval"]
    return f"{100 * pulls['all'][key]:.0f} % (95 % interval {100 * low:.0f} to {100 * high:.0f})"


def miles() -> str:
    """Robust errors on MILES test stars."""
    found = load("sed")["miles"]
    rows = [
        [f"{name}, {which}", *(f"{one:.3f}" for one in values)]
        for which in ("all", "cleaned")
        for name, values in found[which].items()
    ]
    rows.append(["paper, 265 cleaned stars", *(f"{one:.3f}" for one in found["paper"])])
    rows.append(["MILES against HST, same stars", *(f"{one:.3f}" for one in found["miles_against_hst"])])
    note = (
        f"{found['stars']} test stars; cleaning (RMSAE < 0.05) removed {found['removed']}, {found['clean']} are left."
    )
    pulls = found["calibration"]
    note += (
        f" Coverage of `sed` with the error of MILES added: 68 %: {_interval(pulls, 'coverage_68')}; "
        f"95 %: {_interval(pulls, 'coverage_95')}; robust SD of pulls {pulls['all']['robust_sd']:.2f}."
    )
    return _with_note(["method", *(f"{one:.0f} A" for one in found["wavelength"])], rows, note)


def speed() -> str:
    """SEDs/s."""
    found = load("sed")
    rows = [
        [one["threads"], one["sed_per_s"], one["uaranet_per_s"], f"{one['sed_per_s'] / one['uaranet_per_s']:.1f}"]
        for one in found["speed"]["rows"]
    ]
    note = f"{found['environment']['processor']}, {found['environment']['date']}; resampling of raw spectra: "
    note += f"{found['speed']['resampled_per_s']} spectra/s."
    return _with_note(["threads", "`sed`, SEDs/s", "`uaranet`, SEDs/s", "ratio"], rows, note)


TABLES: dict[str, Callable[[], str]] = {
    "sed-held-out": held_out,
    "sed-by-teff": by_teff,
    "sed-calibration": calibration,
    "sed-calspec": calspec,
    "sed-miles": miles,
    "sed-speed": speed,
}
