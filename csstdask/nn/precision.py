"""Arithmetic of networks: float32, bfloat16 or eight-bit integers, and the fastest that a machine and a model allow.

Shorter arithmetic changes probabilities by about 0.01, and with them the decision on pixels at the threshold. The card
of a model states the fraction of the detected pixels that change, measured on held-out frames. This module does not
import torch, which takes a second, so that a run can be planned without it.
"""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from csstdask.nn.card import ModelCard

#: Arithmetic of a network in inference.
Precision = Literal["float32", "bfloat16", "int8"]
#: The same as a setting: ``auto`` is the fastest that the machine has instructions for and the card vouches for.
PrecisionSetting = Literal["auto", "float32", "bfloat16", "int8"]
#: Largest fraction of the detected pixels that a shorter arithmetic may change.
MAX_DISAGREEMENT = 0.01
#: Processor flags of dot products of eight-bit integers, and of bfloat16.
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
#: Oldest PyTorch (major, minor) that says whether it has eight-bit convolutions: with an older one they are emulated.
_INT8_TORCH = (2, 9)


@cache
def processor_flags() -> frozenset[str]:
    """Return the instruction sets of the processor, in the names of Linux; none on other systems."""
    path = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not path.is_file():
        return frozenset()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.split())


@cache
def torch_has_int8() -> bool:
    """Return whether the installed PyTorch has eight-bit convolutions, by its version."""
    major, minor = version("torch").split(".")[:2]
    return (int(major), int(minor)) >= _INT8_TORCH


def fastest_precision(card: ModelCard, device: str = "cpu", flags: frozenset[str] | None = None) -> Precision:
    """Return the fastest arithmetic that a machine has instructions for and whose masks agree with those of float32.

    Parameters
    ----------
    card : ModelCard
        Card of the network. It vouches for an arithmetic if that changes at most `MAX_DISAGREEMENT` of the pixels.
    device : str
        Device of the network; on a GPU bfloat16 is assumed to be fast (compute capability 8.0 or higher).
    flags : frozenset of str, optional
        Instruction sets of the processor, by default those of this machine.

    Examples
    --------
    >>> from csstdask.nn.models import find_card
    >>> fastest_precision(find_card("cosmicray", "unet-fast"), flags=frozenset({"avx2"}))
    'float32'
    >>> fastest_precision(find_card("cosmicray", "unet-fast"), flags=frozenset({"avx2", "avx_vnni"}))
    'int8'
    """
    flags = processor_flags() if flags is None else flags
    on_gpu = not device.startswith("cpu")
    available: dict[Precision, bool] = {
        "int8": not on_gpu and bool(flags & _INT8_FLAGS) and torch_has_int8(),
        "bfloat16": on_gpu or bool(flags & _BFLOAT16_FLAGS),
    }
    agreeing = (name for name, has in available.items() if has and agrees(card, name))
    return next(agreeing, "float32")


def agrees(card: ModelCard, precision: Precision) -> bool:
    """Return whether the card states that the masks of a precision agree with those of float32."""
    return card.disagreement.get(precision, 1.0) <= MAX_DISAGREEMENT


def resolve_precision(setting: PrecisionSetting, card: ModelCard, device: str = "cpu") -> Precision:
    """Return a precision, with ``auto`` replaced by the fastest one."""
    return fastest_precision(card, device) if setting == "auto" else setting
