"""The data of one unit as the steps see it: pixels in electrons, masks, and the results of earlier steps.

A frame reads a plane when a step first uses it, and keeps it. Results of steps that were finished in an earlier run are
read from the run's store: a step cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.correlation import noise_correlation
from csstdask.arrays.frame import frame_variance, ignored_pixels, variance_from_weight
from csstdask.arrays.mesh import Mesh
from csstdask.cosmicray.inpaint import NeighbourFill, fill_from_neighbours
from csstdask.instrument import Instrument, electrons_per_unit
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.pipeline.step import Table
from csstdask.psf.frame import MaskedFrame
from csstdask.store.unit_metadata import UnitMetadata

#: Names of the flag bits of saturated pixels.
SATURATION_FLAGS = ("saturated", "sat", "a_to_d_saturated")

PlaneReader = Callable[[str], npt.NDArray[Any]]


@dataclass(frozen=True)
class RepairedFrame:
    """A frame after repair, in electrons."""

    height: npt.NDArray[np.float32]
    """(y, x) Signal above the sky [e-]; 0 where `mask` is set."""
    error: npt.NDArray[np.float32]
    """(y, x) 1 sigma of each pixel [e-]; that of the repair where repaired."""
    noise: npt.NDArray[np.float32]
    """(y, x) 1 sigma of the sky [e-]."""
    mask: npt.NDArray[np.bool_]
    """(y, x) Pixels to be ignored."""
    repaired: npt.NDArray[np.bool_]
    """(y, x) Pixels whose value was estimated."""
    noise_excess: float = 1.0
    """Factor on `noise` for the detection of sources, larger than 1 where noise is correlated."""


class Frame:
    """Give steps access to the data of one unit.

    Parameters
    ----------
    facts : UnitFacts
        Metadata of the unit.
    instrument : Instrument
        Camera, whose flag bits apply.
    units : str
        Units of the campaign's ``sci``.
    read_plane, read_product : callable
        Return a plane of the campaign, or a product of the run, by name.
    read_header : callable
        Return the FITS header of the science plane as text.
    read_table : callable
        Return a table of the run, by name.
    read_file : callable
        Return the content of the unit's file in a folder of the run, by the folder's name; None if there is none.
    """

    def __init__(
        self,
        metadata: UnitMetadata,
        instrument: Instrument,
        units: str,
        read_plane: PlaneReader,
        read_product: PlaneReader,
        read_header: Callable[[], str] = str,
        read_table: Callable[[str], Table] | None = None,
        read_file: Callable[[str], bytes | None] | None = None,
    ) -> None:
        self.metadata = metadata
        self.instrument = instrument
        self.scale = electrons_per_unit(units, metadata.exptime, metadata.gain)
        self._read_plane = read_plane
        self._read_product = read_product
        self._read_header = read_header
        self._read_table = read_table or (lambda _: {})
        self._read_file = read_file or (lambda _: None)
        self._products: dict[str, npt.NDArray[Any]] = {}
        self._tables: dict[str, Table] = {}
        self._files: dict[str, bytes | None] = {}
        self._ignore: npt.NDArray[np.bool_] | None = None

    @cached_property
    def data(self) -> npt.NDArray[np.float32]:
        """Return the science plane, including the sky [e-]."""
        sci = self._read_plane("sci")
        sci *= np.float32(self.scale)
        return sci

    @property
    def header(self) -> str:
        """Return the FITS header of the science plane, one card per line; empty if there is none."""
        return self._read_header()

    @cached_property
    def flag(self) -> npt.NDArray[np.int32]:
        """Return the flag plane."""
        return self._read_plane("flag")

    @cached_property
    def cr_mask_input(self) -> npt.NDArray[np.bool_]:
        """Return the cosmic rays flagged in the input: compared with, never used."""
        return (self.flag & self.instrument.flags.incoming_cosmic_ray_mask) != 0

    @cached_property
    def _variance(self) -> npt.NDArray[np.float32]:
        """Return the variance given by the weights [e-^2]; inf where they are 0."""
        wht = self._read_plane("wht")
        return np.asarray(variance_from_weight(wht, self.scale, out=wht))

    @cached_property
    def unusable(self) -> npt.NDArray[np.bool_]:
        """Return unusable pixels, by flag, weight or value.

        A weight of 0 under an incoming cosmic-ray bit does not count: another pipeline set it for a cosmic ray that it
        detected, not for a property of the pixel.
        """
        return ignored_pixels(
            self.flag, self.instrument.flags.ignore_mask,
            data=self.data, variance=self._variance, exempt=self.cr_mask_input,
        )  # fmt: skip

    @cached_property
    def saturated(self) -> npt.NDArray[np.bool_]:
        """Return pixels that are unusable only because they are saturated, by flag and value.

        Their weight is not considered: many pipelines set it to 0 for saturation.
        """
        flags = self.instrument.flags
        bits = flags.mask(*(name for name in SATURATION_FLAGS if name in flags.ignore_flags))
        if not bits:
            return np.zeros(self.flag.shape, dtype=bool)
        found = ((self.flag & bits) != 0) & ((self.flag & flags.ignore_mask & ~bits) == 0)
        return found & np.isfinite(self.data)

    @property
    def ignore(self) -> npt.NDArray[np.bool_]:
        """Return pixels that the steps after detection ignore.

        These are the unusable ones, except saturated pixels hit by a cosmic ray, which are repaired.
        """
        if self._ignore is None:
            self._ignore = self.unusable & ~(self.saturated & self.product("cr_mask"))
        return self._ignore

    @cached_property
    def error(self) -> npt.NDArray[np.float32]:
        """Return 1 sigma of each pixel [e-], re-estimated where a weight was zeroed for a cosmic ray."""
        variance = self._variance.copy()
        zeroed = np.isinf(variance) & self.cr_mask_input
        if zeroed.any():
            variance[zeroed] = frame_variance(self.data, None, self.mesh)[zeroed]
        return np.sqrt(variance, out=variance)

    @cached_property
    def fill(self) -> NeighbourFill:
        """Return estimates of hit, usable pixels from their neighbours, by the model ``median`` [e-]."""
        return self.fill_by(find_card("inpaint", "median"))

    def fill_by(self, card: ModelCard) -> NeighbourFill:
        """Return estimates of hit, usable pixels from their neighbours, with the parameters of a model [e-]."""
        hit = self.product("cr_mask")
        donor = ~(hit | self.ignore)
        return fill_from_neighbours(self.data, hit & ~self.ignore, donor, np.square(self.error), card)

    @cached_property
    def masked(self) -> MaskedFrame | None:
        """Return the sky-subtracted frame with hit pixels filled from neighbours; None where the sky is unknown."""
        mesh = self.mesh
        if not np.isfinite(mesh.background).all():
            return None
        target = self.product("cr_mask") & ~self.ignore
        filled, variance = self.data.copy(), np.square(self.error)
        filled[target], variance[target] = self.fill.value, self.fill.variance
        return MaskedFrame.of(filled, variance, target, self.ignore, mesh)

    def release_masked(self) -> None:
        """Free the memory of `masked` and `fill`, which no later step reads."""
        for name in ("masked", "fill"):
            self.__dict__.pop(name, None)

    @property
    def mesh(self) -> Mesh:
        """Return background and noise [e-]."""
        background, noise = (self.product(name) * np.float32(self.scale) for name in ("background", "noise"))
        return Mesh(background, noise, self.data.shape)

    def product(self, name: str) -> npt.NDArray[Any]:
        """Return a product of an earlier step, in the units of the store."""
        if name not in self._products:
            self._products[name] = self._read_product(name)
        return self._products[name]

    def has(self, name: str) -> bool:
        """Return whether a step has computed a product since the frame was opened."""
        return name in self._products

    def table(self, name: str) -> Table:
        """Return a table of an earlier step, in the units of the store."""
        if name not in self._tables:
            self._tables[name] = self._read_table(name)
        return self._tables[name]

    def file(self, name: str) -> bytes | None:
        """Return the content of a file of an earlier step; None if the unit has none."""
        if name not in self._files:
            self._files[name] = self._read_file(name)
        return self._files[name]

    def repaired(self) -> RepairedFrame | None:
        """Return the frame after repair; None where its sky is unknown."""
        mesh = self.mesh
        if not np.isfinite(mesh.background).all():
            return None
        hit, repair, variance = (self.product(name) for name in ("cr_mask", "repair", "repair_variance"))
        repaired = hit & np.isfinite(repair) & np.isfinite(variance)
        scale = np.float32(self.scale)
        height = np.where(repaired, repair * scale, self.data)
        height -= mesh.background_at()
        error = np.where(repaired, np.sqrt(variance) * scale, self.error)
        mask = self.ignore | (hit & ~repaired)
        height[mask] = 0
        error[~np.isfinite(error)] = 0
        excess = noise_correlation(self.data, mask | hit, mesh).excess()
        return RepairedFrame(height, error, mesh.noise_at(), mask, repaired, excess)

    def add_results(
        self,
        products: Mapping[str, npt.NDArray[Any]],
        tables: Mapping[str, Table] | None = None,
        files: Mapping[str, bytes | None] | None = None,
    ) -> None:
        """Add the results of a step for later steps; None marks a file that it has not written."""
        if "cr_mask" in products:
            self._ignore = None
        self._products.update(products)
        self._tables.update(tables or {})
        self._files.update(files or {})
