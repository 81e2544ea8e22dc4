"""The notebook's door: ``campaign.csst`` on an xarray.Dataset, lazy, with the run's own kernels inside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xarray as xr
from astropy import units as u
from astropy.coordinates import Angle, SkyCoord
from threadpoolctl import threadpool_limits

from csstdask.core.errors import InputError
from csstdask.core.settings import validate_settings
from csstdask.flux.flat import Flat
from csstdask.instrument import Instrument, pixel_of, validate_instrument
from csstdask.pipeline.calibrations import current_flat
from csstdask.pipeline.config import RunConfig, load_config
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.source_tables import SourceTables
from csstdask.pipeline.status import load_plan
from csstdask.pipeline.step import Step
from csstdask.pipeline.steps import apply_steps
from csstdask.pipeline.steps.detect import DETECT
from csstdask.pipeline.steps.psf import PSF
from csstdask.pipeline.steps.repair import REPAIR
from csstdask.psf.field import interpolate_nodes, to_unit_square
from csstdask.store.fits_backend import CsstBackend
from csstdask.store.schema import NO_TIME
from csstdask.store.sky_index import sky_coordinates, units_near, wcs_of
from csstdask.store.unit_metadata import UnitMetadata

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CsstAccessor", "CsstBackend"]

#: Settings of a run, as callers may give them.
Settings = RunConfig | Mapping[str, Any] | str | Path | None

#: Systems of equations are solved on one thread, as in a run, so that the bits are the same.
_SOLVING = Lock()


def _unit_products(
    sci: npt.NDArray[Any],
    wht: npt.NDArray[Any],
    flag: npt.NDArray[Any],
    exptime: float,
    gain: float,
    read_noise: float,
    detector: int,
    kind: int,
    band: int,
    *,
    words: tuple[str, ...],
    units: str,
    instrument: Instrument,
    config: RunConfig,
    repair: bool,
) -> npt.NDArray[Any]:
    """Return the mask, or the repaired frame, of one unit or cut-out, by the steps of a run."""
    if not np.isfinite(sci).any():
        return sci if repair else np.zeros(sci.shape, dtype=bool)
    number = (float(exptime), NO_TIME, float(gain), float(read_noise))
    metadata = UnitMetadata("", int(detector), words[int(kind)], words[int(band)], *number, "")
    planes = {"sci": sci, "wht": wht, "flag": flag}
    frame = Frame(metadata, instrument, units, lambda name: planes[name].copy(), lambda name: planes[name])
    if metadata.kind not in DETECT.kinds:  # a run does not process such frames
        return sci if repair else np.zeros(sci.shape, dtype=bool)
    apply_steps(frame, [REPAIR.name if repair else DETECT.name], config, _alone_if_solving)
    hit = frame.product("cr_mask")
    if not repair:
        return hit
    repaired = hit & np.isfinite(frame.product("repair_variance"))
    return np.where(repaired, frame.product("repair"), sci)


@contextlib.contextmanager
def _alone_if_solving(step: Step) -> Iterator[None]:
    """Let a step that solves equations run alone, on one thread."""
    if step.name not in (PSF.name, REPAIR.name):
        yield
        return
    with _SOLVING, threadpool_limits(1, "blas"):
        yield


def _settings(config: Settings) -> RunConfig:
    """Return settings from what a caller gives: a RunConfig, a dict, the path of a TOML file, or None."""
    if config is None or isinstance(config, str | Path):
        return load_config(None if config is None else Path(config))
    return config if isinstance(config, RunConfig) else validate_settings(RunConfig, config, "config", "valid settings")


@xr.register_dataset_accessor("csst")
class CsstAccessor:
    """Methods of a campaign, or of a selection from one."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def instrument(self) -> Instrument:
        """Return the camera."""
        if "instrument" not in self._dataset.attrs:
            raise InputError("dataset", "no instrument among its attributes", "a campaign, from csstdask.open_campaign")
        return validate_instrument(self._dataset.attrs["instrument"], "dataset.attrs['instrument']")

    def _made(self, config: Settings, *, repair: bool) -> xr.DataArray:
        data = self._dataset
        if "sci" not in data:
            raise InputError(
                "dataset", "no raw planes (sci, wht, flag)", "a campaign; a run has cr_mask and clean already"
            )
        planes = [data[name].chunk({"y": -1, "x": -1}) for name in ("sci", "wht", "flag")]
        words, codes = _coded(data["kind"], data["band"])
        made: xr.DataArray = xr.apply_ufunc(
            _unit_products,
            *planes,
            data["exptime"],
            data["gain"],
            data["read_noise"],
            data["detector"],
            *codes,
            kwargs={
                "words": words,
                "units": data["sci"].attrs["units"],
                "instrument": self.instrument,
                "config": _settings(config),
                "repair": repair,
            },
            input_core_dims=[["y", "x"]] * 3 + [[]] * 6,
            output_core_dims=[["y", "x"]],
            vectorize=True,
            dask="parallelized",
            output_dtypes=[np.float32 if repair else bool],
        )
        return made

    def detect_cosmic_rays(self, config: Settings = None) -> xr.DataArray:
        """Return ``cr_mask`` (exposure, detector, y, x), lazily, one block a detector.

        `config` holds the settings of a run: a `RunConfig`, a dict, or the path of a TOML file.

        On whole frames it is what a run stores for the kinds it processes. On a cut-out
        the sky is that of the cut-out, so borderline pixels may differ.
        """
        return self._made(config, repair=False).rename("cr_mask")

    def clean(self, config: Settings = None) -> xr.DataArray:
        """Return ``sci`` with cosmic rays repaired, lazily, in the units of ``sci``."""
        clean = self._made(config, repair=True).rename("clean")
        clean.attrs = dict(self._dataset["sci"].attrs)
        return clean

    def sel_sky(self, ra: Any, dec: Any, size: Any) -> list[xr.Dataset]:
        """Return cut-outs of all units that cover a position on the sky.

        Parameters
        ----------
        ra, dec : float or Quantity
            [deg].
        size : float or Quantity
            Side of the cut-out [arcsec].

        Returns
        -------
        list of xarray.Dataset
            One for each unit, lazy, cut at the edges of the detector; units without a usable WCS are left out.
        """
        position = SkyCoord(Angle(ra, u.deg), Angle(dec, u.deg))
        side = Angle(size, u.arcsec).deg
        found = []
        for row, column in units_near(self._dataset, position, side):
            here = {"exposure": row, "detector": column}
            one = self._dataset.isel({dim: here[dim] for dim in here if dim in self._dataset.sizes})
            wcs = wcs_of(str(one["header"].values))
            rows, columns = _pixels(one, "y"), _pixels(one, "x")
            if not (len(rows) and len(columns)):
                continue
            pixel = None if wcs is None else pixel_of(wcs, position, (int(rows.max()) + 1, int(columns.max()) + 1))
            if wcs is None or pixel is None:
                continue
            half = 0.5 * side / np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))
            windows = {"y": _window(rows, pixel[1], half), "x": _window(columns, pixel[0], half)}
            if all(window.stop > window.start for window in windows.values()):
                found.append(one.isel(windows))
        return found

    def with_sky(self) -> xr.Dataset:
        """Return the dataset with lazy coordinates ``ra`` and ``dec`` for each pixel.

        They are computed from the headers for the pixels that are looked at, and kept by selections. Drop them
        (``drop_vars(["ra", "dec"])``) before whole frames are written or loaded.

        Returns
        -------
        xarray.Dataset
            With ``ra`` and ``dec`` [deg, ICRS] over (exposure, detector, y, x).

        Examples
        --------
        >>> sky = campaign.csst.with_sky()  # doctest: +SKIP
        >>> sky["sci"].sel(ra=60.01, dec=-30.02, method="nearest")  # doctest: +SKIP
        """
        if "header" not in self._dataset:
            raise InputError("dataset", "no headers", "a campaign or a run, or a selection from one")
        return self._dataset.assign_coords(sky_coordinates(self._dataset))

    def psf_at(
        self, x: npt.ArrayLike, y: npt.ArrayLike, *, exposure: int | str = 0, detector: int | None = None
    ) -> xr.DataArray:
        """Return the PSF of a unit at places, from a run's nodes.

        Parameters
        ----------
        x, y : array-like (n,)
            Zero-based [pixel].
        exposure : int or str
            Index or id; not needed where the dataset holds one.
        detector : int
            Its id; not needed where the dataset holds one.

        Returns
        -------
        xarray.DataArray (place, v, u)
            Effective PSF (native pixel included) in half pixels, centred on ``[32, 32]``, sums to 1; NaN where the run
            has none.

        Raises
        ------
        ValueError
            If a place is off the detector.
        """
        data = self._dataset
        if "psf" not in data:
            raise InputError("dataset", "no psf", "a run with the step psf")
        images = _one_detector(_one_exposure(data, exposure), detector)["psf"].values
        across, down = (np.atleast_1d(np.asarray(place, dtype=np.float64)) for place in (x, y))
        # Of the whole detector, of which this may be a cut-out: nodes are equal parts of it apart.
        ny, nx = (float(data[name][1] - data[name][0]) * data.sizes[name] for name in ("y_psf", "x_psf"))
        u, v = to_unit_square(across, down, (round(ny), round(nx)))
        if (np.abs(np.concatenate([u, v])) > 1).any():
            raise ValueError(f"x, y: found a place off the detector; wanted 0 to {round(nx) - 1} and {round(ny) - 1}")
        image = interpolate_nodes(images, u, v)
        return xr.DataArray(image, dims=("place", "v", "u"), coords={"x": ("place", across), "y": ("place", down)})

    def flat(self, detector: int | None = None) -> Flat:
        """Return the flat-field cube and sensitivity of a slitless detector, from a run.

        Parameters
        ----------
        detector : int
            Its id; not needed where the dataset holds one.

        Returns
        -------
        csstdask.flux.Flat
            Its methods evaluate it anywhere, with variance and flags: `evaluate`, `variance`, `to_dataarray`, `apply`,
            `plot`, `to_axe`.

        Raises
        ------
        InputError
            If the run has no cube, or none of the present units of this detector.
        """
        data = self._dataset
        if "flat" not in data or "path" not in data.attrs:
            raise InputError("dataset", "no flat", "a run with the reduction flat (--steps flat)")
        number = int(_one_detector(data, detector)["detector"].values.ravel()[0])
        root = Path(data.attrs["path"])
        flat = current_flat(root, number, load_plan(root, data.attrs["campaign_path"]))
        if flat is None:
            raise InputError(f"detector {number}", "no finished flat", "a slitless detector (csstdask status says why)")
        return flat

    def flat_cube(self, band: str, *, chunks: Any = None) -> xr.DataArray:
        """Return the flats of all detectors of a band as one lazy array.

        Parameters
        ----------
        band : str
            A slitless band: its detectors have one grid of wavelengths.
        chunks : optional
            As Dask has it, for (wavelength, y, x) of a detector.

        Returns
        -------
        xarray.DataArray (detector, wavelength, y, x)
            Values are computed for the parts that are looked at: a whole cube would be 65 GB a detector.

        Raises
        ------
        InputError
            If the run has no cube of this band.
        """
        instrument = self.instrument
        known = np.atleast_1d(self._dataset["detector"].values).tolist()
        detectors = [int(one) for one in known if instrument.detector(int(one)).band == band]
        if not detectors:
            raise InputError("band", repr(band), f"the band of a slitless detector ({', '.join(instrument.slitless)})")
        cubes = [self.flat(detector).to_dataarray(detector=detector, chunks=chunks) for detector in detectors]
        return xr.concat(cubes, dim="detector")

    def sources(self, exposure: int | str | None = None, detector: int | None = None) -> pd.DataFrame:
        """Return the sources of a run with calibrated magnitudes.

        Parameters
        ----------
        exposure : int or str, optional
            Index or id; by default all exposures of the dataset.
        detector : int, optional
            Id; by default all detectors of the dataset.

        Returns
        -------
        pandas.DataFrame
            Rows of the units whose source table is done, fluxes in electron s-1. ``mag`` (AB) is of the Kron ``flux``,
            ``mag_aperture`` of ``flux_aperture`` corrected to the total light of a star; their errors include that of
            the zero point. NaN where the zero points of the run are not done for its present units. See
            `csstdask.pipeline.source_tables.read_sources`.

        Raises
        ------
        InputError
            If the dataset is not a run, or the source table of no unit is done.
        """
        data = self._dataset
        if "path" not in data.attrs or "campaign_path" not in data.attrs:
            raise InputError("dataset", "no run", "a run, from csstdask.open_run")
        some = data if exposure is None else _one_exposure(data, exposure)
        some = some if detector is None else _one_detector(some, detector)
        root = Path(data.attrs["path"])
        table = SourceTables(root, load_plan(root, data.attrs["campaign_path"]))
        units = [
            (str(name), int(one))
            for name in np.atleast_1d(some["exposure"].values)
            for one in np.atleast_1d(some["detector"].values)
            if table.is_done(str(name), int(one))
        ]
        if not units:
            raise InputError("dataset", "no unit with sources", "units that are done (csstdask status says which)")
        return pa.concat_tables([table.read(*unit) for unit in units]).to_pandas()

    def plot_focal_plane(self, name: str = "sci", *, exposure: int | str = 0, ax: Any = None) -> Any:
        """Draw one number a detector at its place in the focal plane: the median of an array, or a metric.

        Parameters
        ----------
        name : str
            A variable over (exposure, detector) or (exposure, detector, y, x); of the latter every 16th
            pixel is looked at.
        exposure : int or str
            Index or id.
        ax : matplotlib.axes.Axes, optional

        Returns
        -------
        matplotlib.axes.Axes
        """
        import matplotlib.pyplot as plt  # noqa: PLC0415
        from matplotlib.collections import PatchCollection  # noqa: PLC0415
        from matplotlib.patches import Rectangle  # noqa: PLC0415

        instrument = self.instrument
        if instrument.geometry is None:
            raise InputError(f"instrument {instrument.name}", "no geometry", "detector centres in its TOML")
        data = _one_exposure(self._dataset, exposure)
        values = data[name]
        if "y" in values.dims:
            values = values.isel(y=slice(None, None, 16), x=slice(None, None, 16)).median(("y", "x"))
        numbers = np.atleast_1d(np.asarray(values, dtype=float))
        shown = dict(zip(np.atleast_1d(data["detector"].values).tolist(), numbers.tolist(), strict=True))
        ax = ax if ax is not None else plt.subplots(figsize=(6, 6))[1]
        ny, nx = instrument.shape or (data.sizes["y"], data.sizes["x"])
        boxes, colours = [], []
        for detector, (x, y) in instrument.geometry.centres.items():
            boxes.append(Rectangle((x - nx / 2, y - ny / 2), nx, ny))
            colours.append(shown.get(detector, np.nan))
            ax.annotate(str(detector), (x, y), ha="center", va="center", fontsize=7)
        patches = PatchCollection(boxes, edgecolor="0.5")
        patches.set_array(np.ma.masked_invalid(colours))
        ax.add_collection(patches)
        ax.autoscale_view()
        ax.set_aspect("equal")
        ax.set_xlabel("x [pixel]")
        ax.set_ylabel("y [pixel]")
        label = f"{name} [{self._dataset[name].attrs['units']}]" if "units" in self._dataset[name].attrs else name
        ax.figure.colorbar(patches, ax=ax, label=label)
        return ax


def _coded(*texts: xr.DataArray) -> tuple[tuple[str, ...], list[xr.DataArray]]:
    """Return words, and arrays of text as numbers of them: Dask takes numbers."""
    words = sorted({str(value) for text in texts for value in np.ravel(text.values)})
    return tuple(words), [
        text.copy(data=np.reshape([words.index(str(value)) for value in np.ravel(text.values)], text.shape))
        for text in texts
    ]


def _one_exposure(data: xr.Dataset, exposure: int | str) -> xr.Dataset:
    """Return one exposure, by index or id; a dataset of one exposure as it is."""
    if "exposure" in data.dims:
        return data.isel(exposure=exposure) if isinstance(exposure, int) else data.sel(exposure=exposure)
    if exposure not in (0, str(data["exposure"].values)):
        raise InputError("exposure", repr(exposure), f"{data['exposure'].values}, the dataset's only one")
    return data


def _one_detector(data: xr.Dataset, detector: int | None) -> xr.Dataset:
    """Return one detector, by id; a dataset of one detector as it is."""
    ids = np.atleast_1d(data["detector"].values).tolist()
    if detector is None and len(ids) > 1:
        raise InputError("detector", "none", f"one of {ids}")
    if detector is not None and detector not in ids:
        raise InputError("detector", repr(detector), f"one of {ids}")
    return data.isel(detector=ids.index(ids[0] if detector is None else detector)) if "detector" in data.dims else data


def _pixels(dataset: xr.Dataset, axis: str) -> npt.NDArray[Any]:
    """Return which pixels of the whole frame a dataset has along an axis."""
    return np.asarray(dataset[axis].values if axis in dataset.coords else np.arange(dataset.sizes[axis]))


def _window(pixels: npt.NDArray[Any], centre: float, half: float) -> slice:
    """Return the slice of those pixels, in any order, that lie within `half` of a centre; empty if there are none."""
    if not np.isfinite(centre):
        return slice(0, 0)
    inside = np.flatnonzero((pixels >= round(centre - half)) & (pixels <= round(centre + half)))
    return slice(int(inside.min()), int(inside.max()) + 1) if len(inside) else slice(0, 0)
