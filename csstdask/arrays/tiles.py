"""Division of a frame into overlapping tiles, such that a tiled network gives the result of the whole frame.

All windows of a frame have the same size, so that they can be stacked into batches. A window begins and ends on the
grid of the network and extends at least a halo beyond its core, the part of the result that is kept. At the edge of the
frame the window is moved inward instead of being padded, so that a network only pads at true edges. With a halo of at
least the receptive radius of the network, the tiled result equals that of the whole frame to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Tile:
    """One tile of a frame."""

    window: Window
    """Rows and columns that are read, padded to the grid."""
    core: Window
    """Rows and columns of the result that are kept."""

    @property
    def core_in_window(self) -> Window:
        """Return the slices of the core within the window."""
        rows, columns = (
            slice(core.start - window.start, core.stop - window.start)
            for core, window in zip(self.core, self.window, strict=True)
        )
        return rows, columns


def padded_shape(shape: tuple[int, int], grid: int) -> tuple[int, int]:
    """Return a frame's shape, rounded up to the grid."""
    return -(-shape[0] // grid) * grid, -(-shape[1] // grid) * grid


def plan_tiles(shape: tuple[int, int], *, tile: int, halo: int, grid: int) -> tuple[Tile, ...]:
    """Cut a frame into tiles.

    Parameters
    ----------
    shape : (int, int)
        Shape of the frame (y, x).
    tile : int
        Approximate size of a core [pixel]; windows have equal sizes, so that no narrow one remains at the end.
    halo : int
        Smallest distance from a core to the edge of its window inside the frame [pixel]; rounded up to the grid.
    grid : int
        Windows begin and end on multiples of this [pixel].

    Returns
    -------
    tuple of Tile
        Tiles whose cores cover the frame exactly once, and whose windows have one shape.

    Raises
    ------
    ValueError
        If a size is not positive.
    """
    if min(*shape, tile, grid) < 1 or halo < 0:
        raise ValueError(f"tiles: found shape {shape}, tile {tile}, halo {halo}, grid {grid}; wanted positive sizes")
    rows, columns = (_cut(length, tile, halo, grid) for length in shape)
    return tuple(Tile((y[0], x[0]), (y[1], x[1])) for y, x in product(rows, columns))


def _cut(length: int, tile: int, halo: int, grid: int) -> list[tuple[slice, slice]]:
    """Return (window, core) along one axis.

    Windows at the edge of the frame need a halo on one side only; their cores are larger, so that all windows can be as
    small as possible.
    """
    padded, reach = (-(-size // grid) * grid for size in (length, halo))
    n = -(-length // tile)
    window = min(padded, -(-(padded + 2 * reach * (n - 1)) // (n * grid)) * grid)
    if window == padded:
        return [(slice(0, padded), slice(0, length))]
    starts = [min(k * (window - 2 * reach), padded - window) for k in range(n)]
    edges = [0, *(start + reach for start in starts[1:]), length]
    return [(slice(start, start + window), slice(*core)) for start, core in zip(starts, pairwise(edges), strict=True)]


def in_batches(
    tiles: Sequence[Tile], read: Callable[[Window], Any], compute: Callable[[list[Any]], Any], batch: int
) -> Iterator[tuple[Window, Any]]:
    """Yield (core, result) of all tiles, read one by one and computed in batches.

    Parameters
    ----------
    tiles : sequence of Tile
    read : callable
        Returns the input of the network for a window, always of one shape.
    compute : callable
        Maps a list of inputs to results (y, x), each as large as its window.
    batch : int
        Number of tiles that are computed at once.
    """
    for first in range(0, len(tiles), batch):
        members = tiles[first : first + batch]
        results = compute([read(tile.window) for tile in members])
        for tile, result in zip(members, results, strict=True):
            yield tile.core, result[tile.core_in_window]
