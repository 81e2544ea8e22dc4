"""A small SED network with random weights."""

from __future__ import annotations

import torch

from csstdask.flux.sed_network import SedNetwork

SIZES = {"components": 12, "sed_components": 6, "members": 3, "width": 16, "blocks": 1, "rank": 4}


def small_network(seed: int = 3) -> SedNetwork:
    torch.manual_seed(seed)
    network = SedNetwork(**SIZES)
    with torch.no_grad():
        network.features.components.copy_(torch.linalg.qr(torch.randn(2238, 12))[0].T)
        network.sed_basis.normal_(0, 0.05)
        network.covariance.basis.normal_(0, 0.02)
        network.covariance.diagonal.fill_(-5.0)
        network.error_projection.normal_(0, 0.1)
        network.teff_weights[0] = 8.7
        network.real_stars.logistic[0] = -20.0
    return network.eval()
