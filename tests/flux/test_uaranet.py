"""UaRA-net as published: shapes, attention and loss."""

from __future__ import annotations

import pytest
import torch

from csstdask.flux.uaranet import SubUnit, UaRANet, published_loss


def test_shapes_are_those_of_table_1() -> None:
    network = UaRANet().eval()
    x = torch.rand(2, 1, 2238)
    shapes = [tuple((x := network.first(x)).shape[1:])]
    for unit in network.units:
        x = unit(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 1119), (4, 560), (4, 560), (8, 280), (8, 280), (16, 140), (16, 140)]
    mean, sigma = network(torch.rand(2, 2238), torch.rand(2, 2238))
    assert mean.shape == sigma.shape == (2, 574)
    assert (sigma > 0).all()


def test_attention_is_a_soft_threshold() -> None:
    """Equation 6 with attention 1 shrinks every feature to zero; with 0 it does not change them."""
    unit = SubUnit(4, 4, 1).eval()
    x = torch.rand(1, 4, 30)
    with torch.no_grad():
        for conv in unit.attention:
            conv.weight.zero_()
            conv.bias.fill_(1.0)
    assert torch.equal(unit(x), x)
    with torch.no_grad():
        unit.attention[-1].bias.zero_()
    assert torch.allclose(unit(x) - x, unit.conv(torch.relu(unit.norm(x))), atol=1e-6)


def test_loss_is_equation_17() -> None:
    mean, sigma, truth = torch.tensor([[1.1]]), torch.tensor([[0.05]]), torch.tensor([[1.0]])
    assert float(published_loss(mean, sigma, truth)) == pytest.approx(0.5 * 4 - 2.9957, abs=1e-3)


def test_other_kinds_raise() -> None:
    with pytest.raises(TypeError, match="kind"):
        UaRANet("sed")
