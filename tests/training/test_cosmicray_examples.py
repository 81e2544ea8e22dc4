"""Training frames outside the survey: resampled, sharper, crossed by satellites; and what a teacher is asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from csstdask.arrays.background import estimate_background
from csstdask.arrays.correlation import noise_correlation
from csstdask.arrays.sharpness import star_sharpness
from csstdask.datasets.scenes import Scene, draw_mock_scene, draw_satellites, rebin
from csstdask.training.cosmicray.config import load_cosmicray_config
from csstdask.training.cosmicray.examples import Examples, cut_patches
from csstdask.training.cosmicray.frames import ContaminatedFrame, add_cosmic_rays, resample
from csstdask.training.cosmicray.train import taught_target

SIZE = 256


def white_frame(rng) -> ContaminatedFrame:
    data = rng.normal(200, 10, (SIZE, SIZE)).astype(np.float32)
    scene = Scene(data, np.full_like(data, 200), 200, 5.0, np.zeros(data.shape, bool))
    charge = np.zeros_like(data)
    charge[100, 50:60] = 500
    return add_cosmic_rays(scene, charge)


def test_resampling_correlates_the_noise_and_spreads_the_charge(rng):
    frame = white_frame(rng)
    correlations = []
    for _ in range(20):
        after = resample(rng, frame)
        mesh = estimate_background(after.data)
        correlations.append(noise_correlation(after.data, None, mesh).mean)
        assert after.charge.sum() == pytest.approx(frame.charge.sum(), rel=1e-3)
        assert not after.in_domain
        assert after.error is not None
        # Errors are those of the pixels: the noise is smaller, and known.
        pull = (after.data - 200)[10:90, 10:90] / after.error[10:90, 10:90]
        assert pull.std() == pytest.approx(10 / np.sqrt(200 + 25), rel=0.05)
    assert min(correlations) < 0.2
    assert max(correlations) > 0.5


def test_binned_pixels_make_sharper_stars(rng):
    scene = draw_mock_scene(rng, 3, 0, 512)
    binned = rebin(scene, 2)
    assert binned.data.shape == (256, 256)
    assert binned.data.sum() == pytest.approx(scene.data.sum(), rel=1e-5)
    assert binned.read_noise == 2 * scene.read_noise
    assert binned.sky == 4 * scene.sky

    def sharpness(one: Scene) -> float:
        return star_sharpness(one.data, one.ignore, estimate_background(one.data, one.ignore))

    assert sharpness(binned) > 1.3 * sharpness(scene) > 0


def test_satellites_cross_the_whole_frame(rng):
    drawn = [draw_satellites(rng, 10.0, SIZE) for _ in range(30)]
    crossed = [light for light in drawn if light.max() > 0]
    assert 0 < len(crossed) < len(drawn)
    edges = [max(light[0].max(), light[-1].max(), light[:, 0].max(), light[:, -1].max()) for light in crossed]
    assert np.median(np.array(edges) / [light.max() for light in crossed]) > 0.5


def examples_of(frame: ContaminatedFrame) -> Examples:
    settings = load_cosmicray_config(None, patch=64, patches=4, conditions=("noise correlation",)).patch_settings
    return cut_patches(np.random.default_rng(5), frame, settings)


def test_conditions_reach_the_network(rng):
    frame = white_frame(rng)
    plain, after = examples_of(frame), examples_of(resample(np.random.default_rng(1), frame))
    assert plain.conditions.shape == (4, 1)
    assert abs(plain.conditions[0, 0]) < 0.1 < after.conditions[0, 0]


def test_a_teacher_is_mixed_in_where_it_knows_the_frames_and_does_not_contradict_the_truth(rng):
    """A teacher that says 0.5 everywhere pulls the target towards 0.5; one that is certain of the opposite does not."""

    class Constant(torch.nn.Module):
        def __init__(self, logit: float) -> None:
            super().__init__()
            self.logit = torch.nn.Parameter(torch.tensor(logit), requires_grad=False)

        def forward(self, channels: torch.Tensor, _conditions: torch.Tensor) -> torch.Tensor:
            return self.logit.expand(len(channels), 1, *channels.shape[2:])

    examples = examples_of(white_frame(rng))
    mixed = taught_target(examples, Constant(0.0), 0.6, "float32")
    assert np.allclose(mixed, 0.4 * examples.hit + 0.3)
    certain = taught_target(examples, Constant(9.0), 0.6, "float32")
    assert np.array_equal(certain[~examples.hit], np.zeros((~examples.hit).sum()))
    foreign = replace(examples, in_domain=np.zeros(len(examples.hit), bool))
    assert np.array_equal(taught_target(foreign, Constant(0.0), 0.6, "float32"), examples.hit)
