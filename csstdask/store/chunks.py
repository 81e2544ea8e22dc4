"""Choose the inner chunks of a detector's shard.

A chunk length that divides the axis keeps every inner chunk complete: writing a shard never reads a chunk back, and a
torn shard never blocks a write. A single chunk does the same for small frames. A padded shard is the last resort for
long axes without a suitable divisor.
"""

from __future__ import annotations

MIN_CHUNK = 256
"""Smallest chunk length that is looked for among the divisors of an axis [pixel]."""
MAX_CHUNK = 1200
"""Largest such chunk length: chunks of about 4 MB in float32 [pixel]."""
MAX_SINGLE_CHUNK = 4096
"""Longest axis that is one chunk if it has no suitable divisor [pixel]."""
PADDED_CHUNK = 1024
"""Chunk length of longer axes without a suitable divisor [pixel]."""


def inner_chunk(length: int) -> int:
    """Return the inner chunk length for an axis.

    It is the largest power of two in 256-1200 that divides the axis, else its largest divisor in that range, else
    the complete axis up to 4096, else 1024 (the shard is then padded to a multiple of it).

    Examples
    --------
    >>> [inner_chunk(n) for n in (251, 513, 746, 9232, 9216, 4099)]
    [251, 513, 746, 1154, 1024, 1024]
    """
    divisors = [n for n in range(MIN_CHUNK, MAX_CHUNK + 1) if length % n == 0]
    powers = [n for n in divisors if n & (n - 1) == 0]
    if powers:
        return powers[-1]
    if divisors:
        return divisors[-1]
    return length if length <= MAX_SINGLE_CHUNK else PADDED_CHUNK


def shard_length(length: int) -> int:
    """Return the shard length for an axis: the axis itself, or the next multiple of its inner chunk.

    Examples
    --------
    >>> shard_length(9232), shard_length(4099)
    (9232, 5120)
    """
    chunk = inner_chunk(length)
    return -(-length // chunk) * chunk
