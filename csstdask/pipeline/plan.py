"""Plan a run: its units, steps, fingerprints, arrays, memory and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from csstdask.engine.fingerprint import fingerprint
from csstdask.engine.memory import LIBRARY_BYTES, Projection, choose_workers
from csstdask.engine.work_units import Selection, SelectionUnion, Unit
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.reduction import Reduction
from csstdask.pipeline.step import Cost, Step
from csstdask.store.campaign import Campaign
from csstdask.store.schema import UNIT_DIMS, ArraySpec
from csstdask.store.unit_metadata import UnitMetadata

#: Time before the first unit: imports, cluster, store [s].
START_SECONDS = 3.5
#: Ratio of the time of a unit while other units run on the same machine to that of a unit alone.
CONCURRENCY_SLOWDOWN = 1.2


@dataclass(frozen=True)
class Prediction:
    """Predicted cost of a step for one unit."""

    seconds: float
    """Time on one core of the reference machine [s]."""
    peak_bytes: int
    """Peak memory of a process with this unit alone, including libraries [byte]."""


@dataclass(frozen=True)
class Plan:
    """A run with all its choices resolved."""

    campaign: Campaign
    steps: tuple[Step, ...]
    config: RunConfig
    selection: Selection | SelectionUnion
    reductions: tuple[Reduction, ...] = ()

    @property
    def pixels(self) -> int:
        """Return the number of pixels of one unit."""
        return self.campaign.shape[0] * self.campaign.shape[1]

    @property
    def sizes(self) -> dict[str, int]:
        """Return the lengths of all dimensions of products."""
        ny, nx = self.campaign.shape
        sizes = {"y": ny, "x": nx}
        for step in self.steps:
            sizes |= step.sizes(self.config, self.campaign.shape)
        for reduction in self.active_reductions:
            sizes |= reduction.sizes(self.config, self.campaign)
        return sizes

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the run, without its input."""
        parts: dict[str, object] = {"steps": self._parts, "instrument": self._instrument_parts()}
        if self.active_reductions:
            parts["reductions"] = {one.name: self.reduction_parts(one) for one in self.active_reductions}
        return fingerprint(parts)

    def reduction_parts(self, reduction: Reduction) -> dict[str, object]:
        """Return everything that decides the result of a reduction, without its inputs."""
        return {
            "version": reduction.numerics_version,
            "settings": reduction.settings(self.config),
            "camera": reduction.camera(self.campaign.instrument),
        }

    @cached_property
    def _parts(self) -> dict[str, dict[str, object]]:
        """Return the settings, versions and models that decide the result of each step."""
        return {
            step.name: {
                "version": step.numerics_version,
                "settings": step.settings(self.config),
                "model": step.model(self.config),
                "threads": self.config.engine.threads_per_unit,
                **self._camera_part(step.camera(self.campaign.instrument)),
            }
            for step in self.steps
        }

    @staticmethod
    def _camera_part(camera: dict[str, object]) -> dict[str, object]:
        return {"camera": camera} if camera else {}

    def _instrument_parts(self) -> dict[str, object]:
        flags = self.campaign.instrument.flags
        return {
            "ignore": flags.ignore_mask,
            "incoming": flags.incoming_cosmic_ray_mask,
            "units": self.campaign.units,
        }

    @cached_property
    def kinds(self) -> frozenset[str]:
        """Return the kinds of the frames that are present."""
        kinds = np.asarray(self.campaign.read("kind"), dtype=object)
        return frozenset(str(kind) for kind in kinds[np.asarray(self.campaign.present, dtype=bool)])

    @property
    def active_steps(self) -> tuple[Step, ...]:
        """Return the steps that process some frame of the campaign."""
        return tuple(step for step in self.steps if step.kinds & self.kinds)

    @property
    def active_reductions(self) -> tuple[Reduction, ...]:
        """Return the reductions of some frame of the campaign."""
        return tuple(one for one in self.reductions if one.kinds & self.kinds)

    def seconds(self, units: int, workers: int, unit_seconds: float | None = None) -> float:
        """Return the predicted time of a run [s].

        Parameters
        ----------
        units : int
            Number of units.
        workers : int
            Number of units processed at the same time.
        unit_seconds : float, optional
            Measured time of one unit while others run [s]; default: that of the reference machine.
        """
        each = unit_seconds
        if each is None:
            each = self.unit_seconds() * (CONCURRENCY_SLOWDOWN if min(units, workers) > 1 else 1.0)
        rounds = -(-units // workers)
        return (START_SECONDS if units else 0.0) + rounds * each

    def steps_of(self, kind: str) -> tuple[Step, ...]:
        """Return the steps that process frames of a kind."""
        return tuple(step for step in self.steps if kind in step.kinds)

    def fingerprints(self, metadata: UnitMetadata) -> dict[str, str]:
        """Return the fingerprints of a unit's steps, each including those of the steps it requires."""
        known: dict[str, str] = {}
        for step in self.steps_of(metadata.kind):
            upstream: object = {name: known[name] for name in step.requires if name in known}
            if not step.requires:
                upstream = self._instrument_parts() | {
                    "digest": metadata.digest,
                    "exptime": metadata.exptime,
                    "gain": metadata.gain,
                }
            known[step.name] = fingerprint({"step": step.name, "upstream": upstream, **self._parts[step.name]})
        return known

    def units(self) -> Iterator[tuple[Unit, int, int]]:
        """Yield the units of the run with their row and column, in order of exposure and detector."""
        kinds = self.campaign.read("kind")
        wanted = frozenset().union(*(step.kinds for step in self.steps))
        for row, exposure in enumerate(self.campaign.exposures):
            for column in np.flatnonzero(self.campaign.present[row]):
                unit = Unit(exposure, self.campaign.detectors[column])
                if unit in self.selection and str(kinds[row, column]) in wanted:
                    yield unit, row, int(column)

    def cost(self, step: Step) -> Cost:
        """Return the cost of a step with this run's settings and instrument."""
        return step.cost(self.config, self.campaign.instrument)

    def predict(self, step: Step) -> Prediction:
        """Return the predicted cost of a step for one unit."""
        cost = self.cost(step)
        return Prediction(cost.seconds(self.pixels), self.library_bytes + cost.peak_bytes(self.pixels))

    @property
    def library_bytes(self) -> int:
        """Return the memory of a process before its first unit, with the libraries that steps import [byte]."""
        libraries: dict[str, int] = {}
        for step in self.active_steps:
            libraries |= step.libraries(self.config)
        return LIBRARY_BYTES + sum(libraries.values())

    def unit_bytes(self) -> int:
        """Return the predicted peak memory of one unit, that of its most expensive step [byte]."""
        return max((self.cost(step).peak_bytes(self.pixels) for step in self.active_steps), default=0)

    def unit_seconds(self) -> float:
        """Return the predicted time of one unit on one core of the reference machine [s]."""
        return sum(self.cost(step).seconds(self.pixels) for step in self.active_steps)

    def stored_bytes(self) -> int:
        """Return the size of a unit's products before compression, an upper limit on disk [byte]."""
        sizes = self.sizes
        return sum(
            np.dtype(product.dtype).itemsize * prod(sizes[dim] for dim in product.dims)
            for step in self.steps
            for product in step.products
        )

    def projection(self, scheduler: str, slots: int) -> Projection:
        """Return the projected memory of a run on this machine.

        With ``processes`` each worker loads the libraries, and the driver only Dask.
        """
        processes = scheduler == "processes"
        return Projection(self.unit_bytes(), slots, self.library_bytes, processes=processes)

    def choose_workers(self, scheduler: str, workers: int | None) -> int:
        """Return the number of units to process at the same time; refuse what does not fit into memory.

        Raises
        ------
        MemoryProjectionError
            If the requested number of units, or a single unit, does not fit.
        """
        return choose_workers(scheduler, self.unit_bytes(), self.library_bytes, wanted=workers)

    def product_specs(self) -> list[tuple[ArraySpec, str | None]]:
        """Return the arrays of the run's store, with their units."""
        specs: list[tuple[ArraySpec, str | None]] = []
        for step in self.steps:
            for product in step.products:
                dims = (*UNIT_DIMS, *product.dims)
                attributes: dict[str, object] = {"long_name": product.long_name}
                units = {None: None, 1: self.campaign.units, 2: f"({self.campaign.units})^2"}[product.units_power]
                specs.append(
                    (
                        ArraySpec(product.name, dims, product.dtype, product.fill, product.codec, attributes),
                        units,
                    )
                )
        for reduction in self.active_reductions:
            for one in reduction.products:
                dims, attributes = reduction.array_dims(one), {"long_name": one.long_name}
                spec = ArraySpec(one.name, dims, one.dtype, one.fill, "table", attributes, words=one.dtype == "str")
                specs.append((spec, one.units))
        return specs


def make_plan(
    campaign: Path,
    steps: Sequence[Step],
    config: RunConfig,
    selection: Selection | SelectionUnion,
    reductions: Sequence[Reduction] = (),
) -> Plan:
    """Open a campaign and plan a run over it."""
    return Plan(Campaign(campaign), tuple(steps), config, selection, tuple(reductions))
