"""Device and precision of networks. CUDA is not initialised before a device is requested."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal, get_args

import torch

from csstdask.nn.precision import Precision

log = logging.getLogger("csstdask")

#: Names in PyTorch of processor instructions for bfloat16.
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
#: Arithmetic of a network in training.
TrainingPrecision = Literal["float32", "bfloat16"]


def choose_device(device: Any = None, *, like: torch.device | None = None) -> torch.device:
    """Return the requested device, by default that of the data, else the host.

    Raises
    ------
    ValueError
        If the device is unknown or does not exist.
    """
    try:
        chosen = torch.device(device) if device is not None else like or torch.device("cpu")
    except RuntimeError:
        raise ValueError(f"device: found {device!r}; wanted cpu or cuda") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: found {chosen}, which does not exist; wanted cpu")
    return chosen


def validate_device(name: str | None) -> str | None:
    """Return the name of a device from settings; ValueError if the device does not exist."""
    choose_device(name)
    return name


@cache
def has_bfloat16() -> bool:
    """Return whether the processor has bfloat16 instructions; True if PyTorch does not report it."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return not capabilities or any(capabilities.get(name) for name in _BFLOAT16)


@cache
def _warn_once() -> None:
    log.warning("bfloat16 is emulated: this processor has no instructions for it, float32 would be faster")


def check_precision(device: torch.device, precision: Precision) -> None:
    """Check that a device supports a precision, and disable TF32 on a GPU.

    float32 results do not depend on the tiling, to rounding; TF32, with the mantissa of float16, would change that.
    bfloat16 is nearly twice as fast on processors with such instructions, int8 three times; both change probabilities
    by about 0.01.

    Raises
    ------
    ValueError
        If the precision is unknown or the device does not support it.
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
    """Return a context for training with a precision; the weights stay float32."""
    check_precision(device, precision)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
