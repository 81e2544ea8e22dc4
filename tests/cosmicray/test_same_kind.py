"""Same kind out as in, and the same result: NumPy, CuPy and torch, on the host and on a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csstdask.arrays.background import estimate_background
from csstdask.arrays.namespace import to_host
from csstdask.cosmicray import detect, inpaint


def cupy_or_skip():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    return cupy


def torch_cuda(array):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    cupy_or_skip()
    return torch.from_numpy(array).cuda()


MAKERS = {
    "numpy": lambda array: array,
    "torch": torch.from_numpy,
    "cupy": lambda array: cupy_or_skip().asarray(array),
    "torch-cuda": torch_cuda,
}


def host(array):
    return array.cpu().numpy() if isinstance(array, torch.Tensor) else to_host(array)


@pytest.fixture
def scene(rng):
    data = rng.normal(100, 5, (192, 160)).astype(np.float32)
    data[rng.random(data.shape) < 0.02] += 400
    mask = rng.random(data.shape) < 0.01
    data[3, 4] = np.nan
    return data, np.full_like(data, 5), mask


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("with_error", [True, False])
def test_detect_and_inpaint(scene, kind, with_error):
    data, error, mask = scene
    make = MAKERS[kind]
    given = make(error) if with_error else None
    found = detect(make(data), given, make(mask))
    expected = detect(data, error if with_error else None, mask)
    assert type(found.mask) is type(make(mask))
    assert type(found.probability) is type(make(data))
    # Backgrounds may differ in their last bit between devices, and a borderline pixel with them.
    assert (host(found.mask) != expected.mask).sum() <= (0 if kind in {"numpy", "torch"} else 3)
    fixed = inpaint(make(data), make(expected.mask), given, make(mask))
    reference = inpaint(data, expected.mask, error if with_error else None, mask)
    assert type(fixed.data) is type(make(data))
    np.testing.assert_allclose(host(fixed.data), reference.data, rtol=1e-6)
    np.testing.assert_allclose(host(fixed.variance), reference.variance, rtol=1e-4)


@pytest.mark.parametrize("kind", ["cupy"])
def test_background_on_a_gpu_is_that_of_the_host(scene, kind):
    data, _, mask = scene
    ours, theirs = (
        estimate_background(MAKERS[kind](data), MAKERS[kind](mask), box=64),
        estimate_background(data, mask, box=64),
    )
    np.testing.assert_allclose(host(ours.background_at()), theirs.background_at(), rtol=1e-5)
    np.testing.assert_allclose(host(ours.noise_at()), theirs.noise_at(), rtol=1e-4)
