"""Where a network runs, and with what precision. Nothing here touches CUDA before it is asked to."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal, get_args

import torch

log = logging.getLogger("csstdask")

#: Instructions for bfloat16 of processors, as PyTorch names them.
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
#: Of a network's arithmetic in training, and in inference.
TrainingPrecision = Literal["float32", "bfloat16"]
Precision = Literal["float32", "bfloat16", "int8"]


def choose_device(device: Any = None, *, like: torch.device | None = None) -> torch.device:
    """Return a device: the one that is asked for, else the data's own, else the host.

    Raises
    ------
    ValueError
        If this machine has no such device.
    """
    try:
        chosen = torch.device(device) if device is not None else like or torch.device("cpu")
    except RuntimeError:
        raise ValueError(f"device: found {device!r}; wanted cpu or cuda") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: found {chosen}, which this machine has not; wanted cpu")
    return chosen


def validate_device(name: str | None) -> str | None:
    """Return the name of a device that settings ask for; ValueError if this machine has no such device."""
    choose_device(name)
    return name


@cache
def has_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16 in one instruction; True where PyTorch cannot tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return not capabilities or any(capabilities.get(name) for name in _BFLOAT16)


@cache
def _warn_once() -> None:
    log.warning("bfloat16 is emulated: this processor has no instructions for it, float32 would be faster")


def check_precision(device: torch.device, precision: Precision) -> None:
    """Make sure that a device computes with a precision.

    float32 gives the same numbers to rounding wherever a tile's edges lie: on a GPU it is kept from TF32, which
    has the mantissa of a half. bfloat16 is nearly twice as fast where the processor has it, int8 three times; both move
    probabilities by about a hundredth.

    Raises
    ------
    ValueError
        If the precision is unknown, or not one that the device has.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision: found {precision!r}; wanted one of {', '.join(get_args(Precision))}")
    if device.type == "cpu" and precision == "bfloat16" and not has_bfloat16():
        _warn_once()
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        if precision == "int8":
            raise ValueError(f"precision: found int8 on {device}; wanted float32 or bfloat16, int8 is for the host")


def autocast(device: torch.device, precision: TrainingPrecision) -> AbstractContextManager[Any]:
    """Return a context in which a network is trained with a precision: its weights stay float32."""
    check_precision(device, precision)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
