"""UNet++: an output of each depth, and a network cut short says what it would have said at that depth."""

from __future__ import annotations

import pytest
import torch

from csstdask.nn.unetpp import UNetPlusPlus


@pytest.fixture
def network():
    torch.manual_seed(5)
    return UNetPlusPlus(inputs=2, outputs=1, channels=(4, 6, 8, 10)).eval()


def test_every_depth_has_an_output(network):
    outputs = network(torch.randn(2, 2, 32, 32))
    assert [tuple(output.shape) for output in outputs] == [(2, 1, 32, 32)] * 3
    assert network.grid == 8
    # X(0,0) to X(3,0), and six nodes of the nested skips: Zhou et al. 2020, figure 1.
    assert (len(network.down), len(network.nested)) == (4, 6)


def test_pruned_network_gives_the_same_output(network):
    frame = torch.randn(1, 2, 32, 32)
    with torch.no_grad():
        every, short = network(frame), network(frame, depth=2)
    assert len(short) == 2
    assert torch.equal(short[1], every[1])
    with pytest.raises(ValueError, match="depth: found 4; wanted 1 to 3"):
        network(frame, depth=4)


def test_fusing_changes_nothing(network):
    frame = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        before = network(frame)[-1]
        network.fuse()
        assert torch.allclose(network(frame)[-1], before, atol=1e-5)


def test_pruned_network_equals_a_shallower_one_and_is_trainable(network):
    pruned = UNetPlusPlus(inputs=2, outputs=1, channels=(4, 6, 8, 10), pruned=2)
    pruned.load_state_dict(network.state_dict())
    frame = torch.randn(1, 2, 32, 32)
    network.eval()
    pruned.eval()
    with torch.inference_mode():
        assert torch.equal(pruned(frame)[-1], network(frame, depth=2)[-1])
    assert len(pruned.train()(frame)) == network.depth
    with pytest.raises(ValueError, match="pruned: found 9"):
        UNetPlusPlus(inputs=2, outputs=1, channels=(4, 8), pruned=9)
