"""Measure stars of a frame before and after cosmic rays are detected and repaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import sep
from scipy.ndimage import binary_dilation

from csstdask.arrays.morphology import label_components
from csstdask.cosmicray.inpaint import inpaint
from csstdask.evaluation.cosmicray.truth_frame import MIN_SNR, TruthFrame, source_snr
from csstdask.metrics.detection import Bool, Float
from csstdask.nn.models import NO_PSF

#: Smallest distance of a star from the edge of the frame, and radius of its aperture [pixel].
_BORDER, _APERTURE = 16, 4.0
#: Half the side of a cut-out of the gallery [pixel], and largest ratio of repaired to clean flux in it.
_HALF_CUTOUT, _MAX_GALLERY_RATIO = 20, 0.8


@dataclass
class StarPhotometry:
    """Stars of a frame, measured in the same apertures in the clean, the hit and the repaired frames."""

    truth: TruthFrame
    core: npt.NDArray[np.int64]
    """(n, 2) Row and column of the central pixel of each star."""
    region: npt.NDArray[np.int64]
    """(n,) Number of the connected region of each star; 0: none."""
    regions: npt.NDArray[np.int32]
    """(y, x) Number of the connected region of each pixel."""
    columns: dict[str, npt.NDArray[Any]]
    """Measurements (n,) by name: ``x``, ``y``, ``snr``, ``area`` of the region [pixel]; fluxes [e-] ``clean``,
    ``hit``, their ``sigma``, and by method that in the repaired frame."""

    @classmethod
    def of(cls, truth: TruthFrame, levels: npt.NDArray[np.int8]) -> StarPhotometry:
        """Select the stars of a frame, and measure them in the clean and the hit frame.

        Parameters
        ----------
        truth : TruthFrame
        levels : int8 array (y, x)
            Region levels of the pixels, as `csstdask.metrics.detection_histograms.label_regions` returns them.
        """
        catalogue, (ny, nx) = truth.catalogue, truth.clean.shape
        counts = catalogue.flux * truth.exptime
        snr = source_snr(counts, truth.rms)
        inside = (
            (catalogue.x > _BORDER)
            & (catalogue.y > _BORDER)
            & (catalogue.x < nx - _BORDER)
            & (catalogue.y < ny - _BORDER)
        )
        chosen = catalogue.is_star & inside & (snr > MIN_SNR)
        x, y, snr = catalogue.x[chosen], catalogue.y[chosen], snr[chosen]
        core = np.column_stack([np.rint(y), np.rint(x)]).astype(np.int64)
        bad = binary_dilation(truth.case.ignore, iterations=3)
        good = ~bad[core[:, 0], core[:, 1]]
        x, y, snr, core = x[good], y[good], snr[good], core[good]
        regions, _ = label_components(levels > 0)
        size = np.bincount(regions.ravel())
        size[0] = 0
        region = regions[core[:, 0], core[:, 1]]
        stars = cls(truth, core, region, regions, {"x": x, "y": y, "snr": snr, "area": size[region]})
        stars.columns["clean"] = stars._aperture(truth.clean)
        stars.columns["hit"] = stars._aperture(truth.case.data)
        variance = np.maximum(truth.clean_error, 0) ** 2
        stars.columns["sigma"] = np.sqrt(np.maximum(stars._aperture(variance, sky=0.0), 1e-6))
        return stars

    def _aperture(self, frame: Float, sky: float | None = None) -> npt.NDArray[np.float64]:
        """Return the sum of the frame minus the sky in the aperture of each star [e-]."""
        above = np.ascontiguousarray(frame - np.float32(self.truth.sky if sky is None else sky))
        if not len(self.columns["x"]):
            return np.empty(0)
        return np.asarray(sep.sum_circle(above, self.columns["x"], self.columns["y"], _APERTURE, subpix=5)[0])

    def measure(self, name: str, found: Bool, gallery: list[dict[str, Any]]) -> None:
        """Repair the mask of a method, measure the stars, and add the one with the lowest flux ratio to a gallery."""
        case = self.truth.case
        fixed = np.asarray(inpaint(case.data, found, case.error, case.ignore, model="median", psf=NO_PSF).data)
        flux = self._aperture(fixed)
        self.columns[name] = flux
        clean = self.columns["clean"]
        solid = clean > 20 * self.columns["sigma"]
        ratio = np.where(solid, flux / np.maximum(clean, 1), 1.0)
        if not solid.any() or ratio.min() > _MAX_GALLERY_RATIO:
            return
        worst = int(np.argmin(ratio))
        y, x = self.core[worst]
        ny, nx = case.data.shape
        window = (
            slice(max(0, y - _HALF_CUTOUT), min(ny, y + _HALF_CUTOUT)),
            slice(max(0, x - _HALF_CUTOUT), min(nx, x + _HALF_CUTOUT)),
        )
        planes = {
            "clean": self.truth.clean,
            "hit": case.data,
            "cosmic ray": case.charge,
            "residual": fixed - self.truth.clean,
        }
        cut = {key: plane[window].astype(np.float32) for key, plane in planes.items()}
        gallery.append(
            {"method": name, "ratio": float(ratio[worst]), "sky": self.truth.sky, "rms": self.truth.rms, **cut}
        )

    def check(self, name: str, found: Bool) -> None:
        """Record which stars are flagged in the frame without cosmic rays: in the core, and in most of the region."""
        n = len(self.core)
        core = np.zeros(n, dtype=bool)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                core |= found[self.core[:, 0] + dy, self.core[:, 1] + dx]
        flagged = np.bincount(self.regions[found], minlength=int(self.regions.max()) + 1)[self.region]
        self.columns[f"{name}: core flagged"] = core
        self.columns[f"{name}: whole flagged"] = (self.region > 0) & (flagged >= 0.5 * self.columns["area"])
