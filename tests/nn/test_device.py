"""Precisions: what a processor does not have is said."""

from __future__ import annotations

import pytest
import torch

from csstdask.nn import device


@pytest.mark.parametrize(
    ("capabilities", "warned"),
    [({"avx512_bf16": True}, False), ({"amx_bf16": True, "avx512_bf16": False}, False), ({"avx2": True}, True),
     ({}, False)],
)  # fmt: skip
def test_bfloat16_without_instructions_is_warned_of(capabilities, warned, monkeypatch, caplog):
    """It was 6.5 times slower than float32, without a message."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    for cached in (device.has_bfloat16, device._warn_once):
        cached.cache_clear()
    host = torch.device("cpu")
    device.check_precision(host, "float32")
    assert not caplog.text
    for _ in range(2):
        device.check_precision(host, "bfloat16")
    assert caplog.text.count("bfloat16 is emulated") == int(warned)
    for cached in (device.has_bfloat16, device._warn_once):
        cached.cache_clear()
