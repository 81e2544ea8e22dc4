"""Same kind out as in, for every kind a caller may have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csstdask.arrays.namespace import open_door


@pytest.mark.parametrize(
    ("dtype", "out"),
    [("f4", "f4"), (">f4", "f4"), (">f8", "f8"), ("f2", "f2"), ("u2", "f4"), (">i2", "f4"), ("?", "f4")],
)
def test_numpy_types(dtype, out):
    door = open_door(np.ones((3, 4), dtype=dtype))
    assert door.dtype == np.dtype(out)
    taken = door.take(np.ones((3, 4), dtype=dtype))
    assert taken.dtype.isnative
    assert taken.flags.c_contiguous


def test_torch_comes_back_as_torch():
    frame = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    door = open_door(frame)
    back = door.give(door.take(frame))
    assert isinstance(back, torch.Tensor)
    assert torch.equal(back, frame)


def test_kinds_may_be_mixed_and_the_frames_kind_wins():
    door = open_door(torch.ones(2, 3))
    assert isinstance(door.take(np.zeros((2, 3), ">i4"), bool), np.ndarray)
    door = open_door(np.ones((2, 3)))
    assert isinstance(door.take(torch.zeros(2, 3)), np.ndarray)


def test_bfloat16_comes_back_as_float32():
    door = open_door(torch.ones(2, 3, dtype=torch.bfloat16))
    assert door.take(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == np.float32
    assert door.give(np.ones((2, 3), np.float32)).dtype == torch.float32


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((2, 2, 2)), np.ones((2, 2), complex), torch.ones(3)])
def test_not_a_frame(wrong):
    with pytest.raises(ValueError, match="wanted one frame"):
        open_door(wrong)
