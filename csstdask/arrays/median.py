"""Adaptive masked median: estimates of pixels from their unmasked neighbours.

The window around each target pixel grows from 3 x 3 to 11 x 11 until it holds enough donors; the estimate is their
median (CSST cosmic-ray rejection paper, section 3.2, "inpaint of the background region"). Only target pixels are
computed. Donors are always original values, never targets or ignored pixels, so that the result does not depend on the
order of the pixels. The algorithm is implemented twice: as a numba loop for the CPU and as a raw kernel for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from csstdask.arrays.namespace import namespace_of

#: Radius of the largest window [pixel].
LARGEST_RADIUS = 5
#: Number of donors at which the window stops growing.
MIN_DONORS = 3


def adaptive_median(
    data: Any,
    target: Any,
    donor: Any,
    *,
    least_donors: int = MIN_DONORS,
    largest_radius: int = LARGEST_RADIUS,
) -> tuple[Any, Any, Any]:
    """Return the median of the donors around each target pixel.

    Parameters
    ----------
    data : array (y, x), float32 or float64
        Not changed.
    target : bool array (y, x)
        Pixels to repair.
    donor : bool array (y, x)
        Pixels whose values may be used: finite, and not targets.
    least_donors : int
        Number of donors at which the window stops growing; the largest window uses whatever it holds.
    largest_radius : int
        Radius of the largest window [pixel]: 5 is 11 x 11.

    Returns
    -------
    median : array (n,), dtype of `data`
        Median of each target, in row-major order; NaN without a donor.
    variance : array (n,), float64
        Sample variance of the donors [unit^2]; NaN with fewer than two.
    count : array (n,), int32
        Number of donors.
    """
    if namespace_of(data) is np:
        y, x = np.nonzero(target)
        return _median_cpu(data, donor, y, x, least_donors, largest_radius)
    return _median_gpu(data, target, donor, least_donors, largest_radius)


def fill_masked(data: Any, mask: Any, fallback: Callable[[], Any]) -> Any:
    """Return a frame with its masked pixels replaced by the median of their unmasked neighbours.

    Parameters
    ----------
    data : array (y, x), float32 or float64
        Not changed.
    mask : bool array (y, x)
        Pixels to fill.
    fallback : callable
        Returns an array (y, x) of values for pixels without an unmasked neighbour in reach; only called if needed.
    """
    xp = namespace_of(data)
    median, _, _ = adaptive_median(data, mask, ~mask)
    result = data.copy()
    found = xp.isfinite(median)
    result[mask] = median if bool(found.all()) else xp.where(found, median, fallback()[mask])
    return result


@numba.njit(nogil=True, cache=True)
def _median_cpu(
    data: npt.NDArray[Any],
    donor: npt.NDArray[np.bool_],
    y: npt.NDArray[np.int64],
    x: npt.NDArray[np.int64],
    least_donors: int,
    largest_radius: int,
) -> Any:
    ny, nx = data.shape
    n = y.size
    median = np.empty(n, dtype=data.dtype)
    variance = np.empty(n, dtype=np.float64)
    count = np.empty(n, dtype=np.int32)
    values = np.empty((2 * largest_radius + 1) ** 2, dtype=np.float64)
    for i in range(n):
        found = 0
        for radius in range(1, largest_radius + 1):
            found = 0
            for yy in range(max(0, y[i] - radius), min(ny, y[i] + radius + 1)):
                for xx in range(max(0, x[i] - radius), min(nx, x[i] + radius + 1)):
                    if donor[yy, xx]:
                        # Insertion sort: there are few values.
                        value = np.float64(data[yy, xx])
                        slot = found
                        while slot > 0 and values[slot - 1] > value:
                            values[slot] = values[slot - 1]
                            slot -= 1
                        values[slot] = value
                        found += 1
            if found >= least_donors:
                break
        count[i] = found
        if found == 0:
            median[i] = np.nan
        else:
            median[i] = 0.5 * (values[(found - 1) // 2] + values[found // 2])
        if found < 2:
            variance[i] = np.nan
        else:
            mean = 0.0
            for j in range(found):
                mean += values[j]
            mean /= found
            total = 0.0
            for j in range(found):
                total += (values[j] - mean) ** 2
            variance[i] = total / (found - 1)
    return median, variance, count


_GPU_SOURCE = r"""
extern "C" __global__ void adaptive_median(
    const T* data, const bool* donor, const long long* index, long long n, int ny, int nx,
    int least_donors, int largest_radius, T* median, double* variance, int* count)
{
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    int y = index[i] / nx, x = index[i] % nx;
    double values[121];
    int found = 0;
    for (int radius = 1; radius <= largest_radius; ++radius) {
        found = 0;
        for (int yy = max(0, y - radius); yy < min(ny, y + radius + 1); ++yy)
            for (int xx = max(0, x - radius); xx < min(nx, x + radius + 1); ++xx) {
                long long at = (long long)yy * nx + xx;
                if (!donor[at]) continue;
                double value = data[at];
                int slot = found;
                for (; slot > 0 && values[slot - 1] > value; --slot) values[slot] = values[slot - 1];
                values[slot] = value;
                ++found;
            }
        if (found >= least_donors) break;
    }
    count[i] = found;
    median[i] = found ? (T)(0.5 * (values[(found - 1) / 2] + values[found / 2])) : (T)nan("");
    if (found < 2) { variance[i] = nan(""); return; }
    double mean = 0, total = 0;
    for (int j = 0; j < found; ++j) mean += values[j];
    mean /= found;
    for (int j = 0; j < found; ++j) total += (values[j] - mean) * (values[j] - mean);
    variance[i] = total / (found - 1);
}
"""


def _median_gpu(data: Any, target: Any, donor: Any, least_donors: int, largest_radius: int) -> tuple[Any, Any, Any]:
    import cupy  # noqa: PLC0415

    if largest_radius > LARGEST_RADIUS:
        raise ValueError(f"largest_radius: found {largest_radius}; wanted at most {LARGEST_RADIUS} on a GPU")
    kind = {"float32": "float", "float64": "double"}[str(data.dtype)]
    kernel = cupy.RawKernel(_GPU_SOURCE.replace("T*", f"{kind}*").replace("(T)", f"({kind})"), "adaptive_median")
    targets = cupy.flatnonzero(target)
    n = int(targets.size)
    median = cupy.empty(n, dtype=data.dtype)
    variance = cupy.empty(n, dtype=np.float64)
    count = cupy.empty(n, dtype=np.int32)
    if n:
        sizes = (np.int64(n), np.int32(data.shape[0]), np.int32(data.shape[1]))
        settings = (np.int32(least_donors), np.int32(largest_radius))
        arguments = (cupy.ascontiguousarray(data), cupy.ascontiguousarray(donor), targets, *sizes, *settings)
        kernel((-(-n // 128),), (128,), (*arguments, median, variance, count))
    return median, variance, count
