"""The xarray accessor ``.csst``: methods of campaigns and runs, lazy where they return pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xarray as xr

from csstdask.core.errors import InputError
from csstdask.flux.flat import Flat
from csstdask.instrument import Instrument, validate_instrument
from csstdask.pipeline.calibrations import current_flat
from csstdask.pipeline.lazy_products import RunSettings, lazy_product
from csstdask.pipeline.source_tables import SourceTables
from csstdask.pipeline.status import load_plan
from csstdask.psf.field import interpolate_nodes, to_unit_square
from csstdask.store.fits_backend import CsstBackend
from csstdask.store.sky_cutouts import cut_out
from csstdask.store.sky_index import sky_coordinates

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CsstAccessor", "CsstBackend"]

_PREVIEW_STEP = 16
"""Step between the pixels of which `plot_focal_plane` takes the median [pixel]."""


@xr.register_dataset_accessor("csst")
class CsstAccessor:
    """Methods of a campaign, a run, or a selection from one.

    The accessor is available on datasets from `csstdask.open_campaign` and `csstdask.open_run`; for other datasets
    import `csstdask.accessor` first.

    Examples
    --------
    >>> campaign = csstdask.open_campaign("campaign.zarr")  # doctest: +SKIP
    >>> campaign.csst.clean().sel(detector=8).isel(exposure=0).compute()  # doctest: +SKIP
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def instrument(self) -> Instrument:
        """Return the camera.

        Raises
        ------
        InputError
            If the dataset does not describe one.

        Examples
        --------
        >>> campaign.csst.instrument.name  # doctest: +SKIP
        'csst'
        """
        if "instrument" not in self._dataset.attrs:
            raise InputError("dataset", "no instrument among its attributes", "a campaign, from csstdask.open_campaign")
        return validate_instrument(self._dataset.attrs["instrument"], "dataset.attrs['instrument']")

    def detect_cosmic_rays(self, config: RunSettings = None) -> xr.DataArray:
        """Detect cosmic rays, lazily, with one block per detector.

        On complete frames the result is what a run stores. On a cut-out the background is that of the cut-out, so
        pixels near the threshold may differ.

        Parameters
        ----------
        config : RunConfig, dict or path, optional
            Settings of a run, such as ``{"detect": {"model": "lacosmic"}}`` or the path of a TOML file.

        Returns
        -------
        xarray.DataArray
            ``cr_mask``, bool (exposure, detector, y, x).

        Raises
        ------
        InputError
            If the dataset has no raw planes, or the settings are invalid.

        Examples
        --------
        >>> mask = campaign.csst.detect_cosmic_rays()  # doctest: +SKIP
        >>> mask.sel(detector=8).mean(("y", "x")).compute()  # doctest: +SKIP
        """
        return lazy_product(self._dataset, self.instrument, config, repair=False).rename("cr_mask")

    def clean(self, config: RunSettings = None) -> xr.DataArray:
        """Detect and repair cosmic rays, lazily, with one block per detector.

        Parameters
        ----------
        config : RunConfig, dict or path, optional
            Settings of a run.

        Returns
        -------
        xarray.DataArray
            ``clean``, the repaired ``sci`` in its units (exposure, detector, y, x).

        Raises
        ------
        InputError
            If the dataset has no raw planes, or the settings are invalid.

        Examples
        --------
        >>> campaign.csst.clean().isel(exposure=0, detector=0).plot.imshow(robust=True)  # doctest: +SKIP
        """
        clean = lazy_product(self._dataset, self.instrument, config, repair=True).rename("clean")
        clean.attrs = dict(self._dataset["sci"].attrs)
        return clean

    def sel_sky(self, ra: Any, dec: Any, size: Any) -> list[xr.Dataset]:
        """Return lazy cut-outs of all units that cover a position on the sky.

        Parameters
        ----------
        ra, dec : float or Quantity
            Position, ICRS [deg].
        size : float or Quantity
            Side length of the cut-outs [arcsec].

        Returns
        -------
        list of xarray.Dataset
            One for each unit, cropped at the edges of the detector. Units without a usable WCS are left out.

        Examples
        --------
        >>> for cutout in campaign.csst.sel_sky(150.1, 2.2, 10):  # doctest: +SKIP
        ...     print(cutout["exposure"].item(), cutout["sci"].shape)
        """
        return cut_out(self._dataset, ra, dec, size)

    def with_sky(self) -> xr.Dataset:
        """Return the dataset with lazy coordinates ``ra`` and ``dec`` for each pixel.

        The coordinates are computed from the headers for the pixels that are read, and are preserved by selections.
        Drop them (``drop_vars(["ra", "dec"])``) before complete frames are written or loaded.

        Returns
        -------
        xarray.Dataset
            With ``ra`` and ``dec`` [deg, ICRS] over (exposure, detector, y, x).

        Raises
        ------
        InputError
            If the dataset has no headers.

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
        """Return the PSF of a unit at positions, interpolated between the nodes of a run.

        Parameters
        ----------
        x, y : array-like (n,)
            Zero-based positions on the detector [pixel].
        exposure : int or str
            Index or id; not needed if the dataset contains a single exposure.
        detector : int, optional
            Detector id; not needed if the dataset contains a single detector.

        Returns
        -------
        xarray.DataArray (place, v, u)
            Effective PSF (native pixel included) in half pixels, centred on ``[32, 32]``, sums to 1; NaN if the run has
            none.

        Raises
        ------
        InputError
            If the dataset has no PSF.
        ValueError
            If a position is off the detector.

        Examples
        --------
        >>> run.csst.psf_at([100.0], [2000.0], exposure=0, detector=8)  # doctest: +SKIP
        """
        data = self._dataset
        if "psf" not in data:
            raise InputError("dataset", "no psf", "a run with the step psf")
        images = _one_detector(_one_exposure(data, exposure), detector)["psf"].values
        columns, rows = (np.atleast_1d(np.asarray(position, dtype=np.float64)) for position in (x, y))
        # The nodes divide the complete detector into equal parts, also if this dataset is a cut-out.
        ny, nx = (float(data[name][1] - data[name][0]) * data.sizes[name] for name in ("y_psf", "x_psf"))
        u, v = to_unit_square(columns, rows, (round(ny), round(nx)))
        if (np.abs(np.concatenate([u, v])) > 1).any():
            wanted = f"0 to {round(nx) - 1} and {round(ny) - 1}"
            raise ValueError(f"x, y: found a position off the detector; wanted {wanted}")
        image = interpolate_nodes(images, u, v)
        return xr.DataArray(image, dims=("place", "v", "u"), coords={"x": ("place", columns), "y": ("place", rows)})

    def flat(self, detector: int | None = None) -> Flat:
        """Return the flat-field cube and sensitivity of a slitless detector of a run.

        Parameters
        ----------
        detector : int, optional
            Detector id; not needed if the dataset contains a single detector.

        Returns
        -------
        csstdask.flux.Flat
            Its methods `evaluate`, `variance`, `to_dataarray`, `apply`, `plot` and `to_axe` use it at any position.

        Raises
        ------
        InputError
            If the run has no cube of the present units of this detector.

        Examples
        --------
        >>> run.csst.flat(2).evaluate(x=100, y=200, wavelength=5000.0)  # doctest: +SKIP
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

        Values are computed for the parts that are read; the cube of one detector would take 65 GB.

        Parameters
        ----------
        band : str
            Slitless band; its detectors share a wavelength grid.
        chunks : optional
            Chunks of (wavelength, y, x) of a detector, in any form that Dask accepts.

        Returns
        -------
        xarray.DataArray (detector, wavelength, y, x)

        Raises
        ------
        InputError
            If the run has no cube of this band.

        Examples
        --------
        >>> run.csst.flat_cube("GV").sel(detector=2).isel(wavelength=0)  # doctest: +SKIP
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
            Index or id; default: all exposures of the dataset.
        detector : int, optional
            Detector id; default: all detectors of the dataset.

        Returns
        -------
        pandas.DataFrame
            Sources of the units whose source table is done, with fluxes in e-/s. ``mag`` (AB) is that of the Kron
            ``flux``, ``mag_aperture`` that of ``flux_aperture`` corrected to the total light of a star. Their errors
            include that of the zero point. Magnitudes are NaN if the zero points of the run are not up to date.

        Raises
        ------
        InputError
            If the dataset is not a run, or no source table is done.

        Examples
        --------
        >>> table = run.csst.sources(exposure=0, detector=8)  # doctest: +SKIP
        >>> table[["ra", "dec", "mag", "mag_err"]].head()  # doctest: +SKIP
        """
        data = self._dataset
        if "path" not in data.attrs or "campaign_path" not in data.attrs:
            raise InputError("dataset", "no run", "a run, from csstdask.open_run")
        selected = data if exposure is None else _one_exposure(data, exposure)
        selected = selected if detector is None else _one_detector(selected, detector)
        root = Path(data.attrs["path"])
        table = SourceTables(root, load_plan(root, data.attrs["campaign_path"]))
        units = [
            (str(name), int(one))
            for name in np.atleast_1d(selected["exposure"].values)
            for one in np.atleast_1d(selected["detector"].values)
            if table.is_done(str(name), int(one))
        ]
        if not units:
            raise InputError("dataset", "no unit with sources", "units that are done (csstdask status says which)")
        return pa.concat_tables([table.read(*unit) for unit in units]).to_pandas()

    def plot_focal_plane(self, name: str = "sci", *, exposure: int | str = 0, ax: Any = None) -> Any:
        """Plot one number per detector at its position in the focal plane.

        Parameters
        ----------
        name : str
            A variable over (exposure, detector), or over (exposure, detector, y, x), of which the median of every 16th
            pixel is shown.
        exposure : int or str
            Index or id.
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; default: a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        InputError
            If the camera has no focal-plane geometry.

        Examples
        --------
        >>> run.csst.plot_focal_plane("n_cr_pixels")  # doctest: +SKIP
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
            step = slice(None, None, _PREVIEW_STEP)
            values = values.isel(y=step, x=step).median(("y", "x"))
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


def _one_exposure(data: xr.Dataset, exposure: int | str) -> xr.Dataset:
    """Return one exposure by index or id; a dataset of a single exposure is returned unchanged."""
    if "exposure" in data.dims:
        return data.isel(exposure=exposure) if isinstance(exposure, int) else data.sel(exposure=exposure)
    if exposure not in (0, str(data["exposure"].values)):
        raise InputError("exposure", repr(exposure), f"{data['exposure'].values}, the dataset's only one")
    return data


def _one_detector(data: xr.Dataset, detector: int | None) -> xr.Dataset:
    """Return one detector by id; a dataset of a single detector is returned unchanged."""
    ids = np.atleast_1d(data["detector"].values).tolist()
    if detector is None and len(ids) > 1:
        raise InputError("detector", "none", f"one of {ids}")
    if detector is not None and detector not in ids:
        raise InputError("detector", repr(detector), f"one of {ids}")
    return data.isel(detector=ids.index(ids[0] if detector is None else detector)) if "detector" in data.dims else data
