"""Build the network of a card."""

from __future__ import annotations

from typing import Any

from torch import nn

from csstdask.core.errors import InputError
from csstdask.zeropoint.prior.azprc import AzpRc
from csstdask.zeropoint.prior.network import PriorNetwork


def build_network(kind: str, **architecture: Any) -> nn.Module:
    """Build the network of a card's architecture.

    Parameters
    ----------
    kind : str
        ``zeropoint`` or ``azprc``.
    **architecture
        Arguments of `PriorNetwork` or `AzpRc`.

    Raises
    ------
    InputError
        If the kind is unknown.
    """
    if kind == "azprc":
        return AzpRc(kind=kind, **architecture)
    if kind == "zeropoint":
        return PriorNetwork(kind=kind, **architecture)
    raise InputError("architecture", f"kind = {kind!r}", "'zeropoint' or 'azprc'")
