"""Networks: how far they see is what they say, and fusing changes nothing."""

from __future__ import annotations

import pytest
import torch

from csstdask.nn.blocks import UNet, receptive_radius


@pytest.mark.parametrize(("pools", "radius"), [(1, 9), (2, 23), (3, 51), (4, 107)])
def test_radius_formula(pools, radius):
    assert receptive_radius(pools) == radius
    assert receptive_radius(pools, stem=2) == 2 * radius + 1


@pytest.mark.parametrize(
    ("channels", "stem", "more"),
    [
        ((8, 8), 1, {}),
        ((8, 8, 8), 1, {}),
        ((8, 8), 2, {}),
        ((8, 8, 8), 2, {}),
        ((8, 8), 2, {"fine": 4}),
        ((8, 8), 2, {"fine": 4, "close": (4, 4, 4)}),
        ((4, 6), 3, {"fine": 4, "close": (4, 4, 4)}),
    ],
)
def test_nothing_beyond_the_radius_matters_and_something_at_it_does(channels, stem, more):
    """The gradient of one output pixel with respect to the input, over all phases of the grid."""
    torch.manual_seed(1)
    network = UNet(inputs=1, outputs=1, channels=channels, stem=stem, **more).double().eval()
    if network.fine is not None:
        torch.nn.init.ones_(network.fine.head.weight)
        torch.nn.init.ones_(network.fine.settle.convolutions[0].weight)
    for weight in network.parameters():  # no unit is dead: everything that can matter does
        weight.data.abs_()
    side = (2 * network.radius // network.grid + 4) * network.grid
    furthest = 0
    for phase in range(network.grid):
        frame = torch.randn(1, 1, side, side, dtype=torch.float64, requires_grad=True)
        centre = side // 2 + phase
        network(frame)[0, 0, centre, centre].backward()
        rows = frame.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
        furthest = max(furthest, int((rows - centre).abs().max()))
    assert furthest <= network.radius
    # Not a loose bound: dead units may hide a pixel or two of it, no more than the coarsest cell.
    assert furthest > network.radius - network.grid


@pytest.mark.parametrize(("stem", "fine", "close"), [(1, 0, ()), (2, 0, ()), (2, 4, ()), (2, 4, (4, 6)), (3, 0, ())])
def test_fusing_changes_nothing(stem, fine, close):
    """Neither does taking the stem into the first convolution."""
    torch.manual_seed(2)
    network = UNet(inputs=2, outputs=1, channels=(4, 6), stem=stem, fine=fine, close=close)
    if network.fine is not None:
        torch.nn.init.normal_(network.fine.head.weight)
        torch.nn.init.normal_(network.fine.settle.convolutions[0].weight)
    if network.close is not None:
        torch.nn.init.normal_(network.close.head.weight)
    with torch.no_grad():  # normalisation statistics that are not those of a newborn
        for _ in range(3):
            network(torch.randn(2, 2, 12 * stem, 12 * stem) * 3 + 1)
    network.eval()
    frame = torch.randn(1, 2, 48 * stem, 32 * stem)
    with torch.no_grad():
        before = network(frame)
        network.fuse()
        after = network(frame)
    assert torch.allclose(before, after, atol=1e-5)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in network.modules())


@pytest.mark.parametrize("close", [(), (4, 6)])
def test_untrained_full_resolution_layers_change_nothing(close):
    """A trained network can gain such blocks without losing what it has learnt."""
    torch.manual_seed(3)
    network = UNet(inputs=2, outputs=1, channels=(4, 6), stem=2, fine=4, close=close).eval()
    frame = torch.randn(1, 2, 32, 32)
    with torch.no_grad():
        whole = network(frame)
        network.fine = None
        assert torch.equal(network(frame), whole)


def test_a_close_look_wants_layers_that_take_it_up():
    with pytest.raises(ValueError, match=r"close: found \[4, 6\] without fine"):
        UNet(inputs=1, outputs=1, channels=(4, 6), close=(4, 6))
