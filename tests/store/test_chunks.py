"""Inner chunks divide the axis wherever an axis can be divided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csstdask.store.chunks import inner_chunk, shard_length


@pytest.mark.parametrize(
    ("length", "chunk"), [(251, 251), (513, 513), (746, 746), (9232, 1154), (9216, 1024), (4099, 1024), (3001, 3001)]
)
def test_known_lengths(length, chunk):
    assert inner_chunk(length) == chunk


@given(st.integers(1, 20_000))
def test_shard_is_whole_chunks_and_padding_is_the_last_resort(length):
    chunk, shard = inner_chunk(length), shard_length(length)
    assert shard % chunk == 0
    assert length <= shard < length + chunk
    if shard != length:
        assert length > 4096
        assert not any(length % n == 0 for n in range(256, 1201))
