"""Eight bits: near the network in float32, the same with and without the processor's help, exact where it must be."""

from __future__ import annotations

import pytest
import torch

from csstdask.core.errors import InputError
from csstdask.nn import int8
from csstdask.nn.blocks import ExactConv2d, UNet
from csstdask.nn.int8 import Int8UNet, is_native, measure_ranges


def lived(stem=2, channels=(8, 12, 16), **more):
    """Return a fused network whose normalisation has seen something."""
    torch.manual_seed(11)
    network = UNet(inputs=2, outputs=1, channels=channels, stem=stem, **more)
    if network.fine is not None:
        torch.nn.init.normal_(network.fine.head.weight)
    if network.close is not None:
        torch.nn.init.normal_(network.close.head.weight)
        torch.nn.init.normal_(network.fine.settle.convolutions[0].weight, std=0.1)
    with torch.no_grad():
        for _ in range(4):
            network(
                torch.randn(4, 2, 64, 64) * 2 + 0.5, torch.rand(4, more["conditions"]) if "conditions" in more else None
            )
    network.eval().to(memory_format=torch.channels_last).fuse()
    return network


@pytest.fixture
def frame():
    torch.manual_seed(12)
    return torch.randn(1, 2, 96, 64) * 2 + 0.5


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"stem": 1, "channels": (8, 8)},
        {"up": 1},
        {"up": 1, "merge": "add"},
        {"down": 1, "up": 1},
        {"fine": 6},
        {"fine": 6, "close": (8, 10)},
        {"fine": 6, "close": (8,)},
    ],
)
def test_int8_is_close_to_float32(frame, architecture):
    network = lived(**architecture)
    ranges = measure_ranges(network, [(frame,)])
    with torch.inference_mode():
        exact, rough = network(frame), Int8UNet(network, ranges)(frame)
    assert rough.shape == exact.shape
    assert (rough - exact).abs().mean() < 0.03 * exact.std()
    assert (rough != exact).any()


@pytest.mark.skipif(not is_native(), reason="a processor without integer dot products")
@pytest.mark.parametrize("close", [(), (8, 10)])
def test_result_does_not_depend_on_processor_instructions(frame, monkeypatch, close):
    """The last layers agree to one quantisation step, as the two implementations round halves differently."""
    network = lived(fine=6, close=close)
    ranges = measure_ranges(network, [(frame,)])
    with torch.inference_mode():
        native = Int8UNet(network, ranges)(frame)
        monkeypatch.setattr(int8, "is_native", lambda: False)
        emulated = Int8UNet(network, ranges)(frame)
    assert (native - emulated).abs().mean() < 0.002 * native.std()


def test_values_out_of_range_are_clipped(frame):
    """A pixel 1000 times brighter than all examples does not overflow, and does not affect distant pixels."""
    network = lived()
    quantised = Int8UNet(network, measure_ranges(network, [(frame,)]))
    bright = frame.clone()
    bright[0, :, 2, 2] = 5e3
    with torch.inference_mode():
        before, after = quantised(frame), quantised(bright)
    assert torch.isfinite(after).all()
    far = network.radius + 3
    assert torch.equal(before[..., far:, far:], after[..., far:, far:])
    assert not torch.equal(before[..., :4, :4], after[..., :4, :4])


@pytest.mark.parametrize("merge", ["add", "concatenate"])
def test_conditions_shift_the_first_convolution(frame, merge):
    """The same conditions shift the eight-bit network as they shift the exact one."""
    network = lived(merge=merge, conditions=2)
    torch.nn.init.normal_(network.condition.output.weight, std=3)
    one, other = torch.tensor([[0.1, 1.0]]), torch.tensor([[0.5, 2.0]])
    ranges = measure_ranges(network, [(frame, one), (frame, other)])
    quantised = Int8UNet(network, ranges)
    with torch.inference_mode():
        for conditions in (one, other):
            exact, rough = network(frame, conditions), quantised(frame, conditions)
            assert (rough - exact).abs().mean() < 0.03 * exact.std()
        assert (network(frame, one) - network(frame, other)).abs().mean() > 0.1 * exact.std()


def test_networks_without_ranges_raise():
    with pytest.raises(InputError, match=r"no range of down\.0\.0, .*; wanted one for each layer"):
        Int8UNet(lived(), {})


@pytest.mark.parametrize(("fine", "close"), [(0, ()), (6, ()), (6, (8, 10))])
def test_convolutions_that_see_the_image_are_exact_whatever_the_rest_is(fine, close):
    """A difference of .03, which bfloat16 cannot hold at 8, passes them; their weights stay as they were."""
    network = lived(fine=fine, close=close)
    if network.close is not None:
        assert isinstance(network.close.first, ExactConv2d)
        network.fine.head.weight.data.zero_()  # what passes now has passed the second U-Net
        network.head.weight.data.zero_()
    elif network.fine is not None:
        assert isinstance(network.fine.look.convolutions[0], ExactConv2d)
        network.head.weight.data.zero_()  # what passes now has passed the fine layers
    weight = network.first.weight.clone()
    network.lower(torch.bfloat16)
    assert isinstance(network.first, ExactConv2d)
    assert torch.equal(network.first.weight, weight)
    assert network.head.weight.dtype == torch.bfloat16
    level = torch.full((1, 2, 32, 32), 8.0)
    nearly = level.clone()
    nearly[..., 16, 16] += 0.03
    assert torch.equal(level.bfloat16(), nearly.bfloat16())
    with torch.inference_mode():
        assert not torch.equal(network(level), network(nearly))
