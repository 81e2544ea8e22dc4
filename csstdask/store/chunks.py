"""How a detector is cut into chunks inside its shard.

*When to use which rule*: a divisor keeps every inner chunk whole, so that writing a shard never reads one
back and a torn shard can never block a write; a whole axis does the same for small frames; a padded shard
is the last resort for long axes without useful divisors.
"""

from __future__ import annotations

SMALLEST, LARGEST, WHOLE, PADDED = 256, 1200, 4096, 1024


def inner_chunk(length: int) -> int:
    """Return the inner chunk length for an axis.

    The largest power of two in 256-1200 that divides the axis, else its largest divisor in that range, else
    the whole axis up to 4096, else 1024 (and the shard is padded to a multiple of it).

    >>> [inner_chunk(n) for n in (251, 513, 746, 9232, 9216, 4099)]
    [251, 513, 746, 1154, 1024, 1024]
    """
    divisors = [n for n in range(SMALLEST, LARGEST + 1) if length % n == 0]
    powers = [n for n in divisors if n & (n - 1) == 0]
    if powers:
        return powers[-1]
    if divisors:
        return divisors[-1]
    return length if length <= WHOLE else PADDED


def shard_length(length: int) -> int:
    """Return the shard length for an axis: the axis itself, or the next multiple of its inner chunk.

    >>> shard_length(9232), shard_length(4099)
    (9232, 5120)
    """
    chunk = inner_chunk(length)
    return -(-length // chunk) * chunk
