"""A frame cut into overlapping tiles, so that a network sees each part of it as if it saw the whole.

All tiles of a frame are windows of one size, so that they can be stacked into batches. A window begins and ends
on the network's grid and reaches at least a halo beyond the part of the result it is responsible for, except at
the frame's own edge: there it is moved inward instead of being padded, so that the only padding a network ever
does is at true edges. With a halo no smaller than the network's receptive radius, the tiled result is that of
the whole frame, to rounding.
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
    """What is read: rows and columns of the frame, padded to the grid."""
    core: Window
    """What it decides: rows and columns of the frame."""

    @property
    def core_in_window(self) -> Window:
        """Return the core's place in the window."""
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
        Of the frame (y, x).
    tile : int
        Wanted size of a core [pixel]. Windows of a frame are alike, so that the last ones are no slivers.
    halo : int
        Least distance from a core to its window's edge, where that is not the frame's [pixel]; rounded up to
        the grid.
    grid : int
        Windows begin and end on its multiples.

    Returns
    -------
    tuple of Tile
        Their cores cover the frame once; their windows are of one shape.

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

    Windows at the frame's edge need a halo on one side alone: they decide more, and all are as small as can be.
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
    """Yield (core, result) of all tiles: windows are read one by one and computed in batches.

    Parameters
    ----------
    tiles : sequence of Tile
    read : callable
        Returns what the network sees of a window, all of one shape.
    compute : callable
        Maps a list of these to results (y, x), each as large as its window.
    batch : int
        Tiles computed at once.
    """
    for first in range(0, len(tiles), batch):
        some = tiles[first : first + batch]
        results = compute([read(tile.window) for tile in some])
        for tile, result in zip(some, results, strict=True):
            yield tile.core, result[tile.core_in_window]
