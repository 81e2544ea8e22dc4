"""Same kind out as in, for every kind a caller may have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csstdask.arrays.namespace import array_adapter


@pytest.mark.parametrize(
    ("dtype", "out"),
    [("f4", "f4"), (">f4", "f4"), (">f8", "f8"), ("f2", "f2"), ("u2", "f4"), (">i2", "f4"), ("?", "f4")],
)
def test_numpy_types(dtype, out):
    adapter = array_adapter(np.ones((3, 4), dtype=dtype))
    assert adapter.dtype == np.dtype(out)
    taken = adapter.to_internal(np.ones((3, 4), dtype=dtype))
    assert taken.dtype.isnative
    assert taken.flags.c_contiguous


def test_torch_comes_back_as_torch():
    frame = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    adapter = array_adapter(frame)
    back = adapter.to_caller(adapter.to_internal(frame))
    assert isinstance(back, torch.Tensor)
    assert torch.equal(back, frame)


def test_kinds_may_be_mixed_and_the_frames_kind_wins():
    adapter = array_adapter(torch.ones(2, 3))
    assert isinstance(adapter.to_internal(np.zeros((2, 3), ">i4"), bool), np.ndarray)
    adapter = array_adapter(np.ones((2, 3)))
    assert isinstance(adapter.to_internal(torch.zeros(2, 3)), np.ndarray)


def test_bfloat16_comes_back_as_float32():
    adapter = array_adapter(torch.ones(2, 3, dtype=torch.bfloat16))
    assert adapter.to_internal(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == np.float32
    assert adapter.to_caller(np.ones((2, 3), np.float32)).dtype == torch.float32


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((2, 2, 2)), np.ones((2, 2), complex), torch.ones(3)])
def test_not_a_frame(wrong):
    with pytest.raises(ValueError, match="wanted one frame"):
        array_adapter(wrong)
