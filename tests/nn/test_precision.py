"""The fastest arithmetic of a machine, if the card of the model vouches for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from csstdask.nn.models import find_card
from csstdask.nn.precision import (
    MAX_DISAGREEMENT,
    fastest_precision,
    processor_flags,
    resolve_precision,
    torch_has_int8,
)

VNNI, AMX, PLAIN = (
    frozenset({"avx2", "avx512_vnni", "avx512_bf16"}),
    frozenset({"avx2", "amx_bf16"}),
    frozenset({"avx2", "avx512f"}),
)
GOOD, BAD = MAX_DISAGREEMENT, 1.01 * MAX_DISAGREEMENT


@pytest.mark.parametrize(
    ("disagreement", "device", "flags", "expected"),
    [
        ({"int8": GOOD, "bfloat16": GOOD}, "cpu", VNNI, "int8"),
        ({"int8": GOOD, "bfloat16": GOOD}, "cpu", AMX, "bfloat16"),
        ({"int8": GOOD, "bfloat16": GOOD}, "cpu", PLAIN, "float32"),
        ({"int8": GOOD, "bfloat16": GOOD}, "cuda:1", PLAIN, "bfloat16"),
        ({"int8": BAD, "bfloat16": GOOD}, "cpu", VNNI, "bfloat16"),
        ({"int8": BAD, "bfloat16": BAD}, "cuda", VNNI, "float32"),
        ({}, "cpu", VNNI, "float32"),
    ],
)
def test_fastest(disagreement, device, flags, expected):
    card = replace(find_card("cosmicray", "unet-fast"), disagreement=disagreement)
    assert fastest_precision(card, device, flags) == expected


@pytest.mark.parametrize(("version", "expected"), [("2.8.1+cpu", "float32"), ("2.9.0", "int8"), ("3.0", "int8")])
def test_an_older_torch_would_emulate_int8(monkeypatch, version, expected):
    card = replace(find_card("cosmicray", "unet-fast"), disagreement={"int8": GOOD})
    monkeypatch.setattr("csstdask.nn.precision.version", lambda name: version)
    torch_has_int8.cache_clear()
    try:
        assert fastest_precision(card, "cpu", VNNI) == expected
    finally:
        torch_has_int8.cache_clear()


def test_a_given_precision_is_kept():
    card = find_card("cosmicray", "unet-fast")
    assert resolve_precision("bfloat16", card) == "bfloat16"
    assert resolve_precision("auto", card) == fastest_precision(card)


@pytest.mark.parametrize("name", ["unet", "unet-medium", "unet-fast", "deepcr"])
def test_shipped_cards_state_their_disagreement(name):
    assert set(find_card("cosmicray", name).disagreement) == {"bfloat16", "int8"}


def test_flags_are_read_only_where_they_exist(monkeypatch):
    assert all(flag == flag.strip() for flag in processor_flags())
    processor_flags.cache_clear()
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    try:
        assert processor_flags() == frozenset()
    finally:
        processor_flags.cache_clear()
