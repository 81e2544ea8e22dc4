"""Inference of a U-Net in eight bits, nearly twice as fast as bfloat16 on processors with integer dot products.

The quantisation is post-training: affine with one scale per layer for activations, symmetric with one scale per channel
for weights (Jacob et al. 2018, CVPR, arXiv:1712.05877). Convolutions of the image itself stay in float32, as in every
`UNet`, and the head returns float32 logits. The range of the output of each layer is measured once, on examples, and
stored in the model card, so that a card gives the same numbers on any frame.

Without such instructions (VNNI), or if PyTorch does not report them (before 2.9), the same arithmetic is emulated in
float32. The result is the same to one quantisation step, but slower, and a warning is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from csstdask.core.errors import InputError
from csstdask.nn.blocks import ConvStack, ExactConv2d, FineLayers, UNet

log = logging.getLogger("csstdask")

#: Lowest and highest output of each layer, by its name.
Ranges = Mapping[str, Sequence[float]]
#: Fraction of the output of a layer that may be clipped: a few stars must not set the scale of all pixels.
_CLIPPED_FRACTION = 1e-5
#: Largest quantised activation.
_LEVELS = 255
#: Largest quantised weight.
_WEIGHT_LEVELS = 127
#: Smallest range and scale, against division by zero.
_MIN_SCALE = 1e-8


@cache
def is_native() -> bool:
    """Return whether the processor and this build of PyTorch support eight-bit dot products."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_it = any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return bool(has_it) and torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qconv2d_pointwise")


@cache
def _warn_once() -> None:
    log.warning("int8 is emulated: this processor multiplies no eight-bit integers, float32 would be faster")


class _Scale:
    """An affine map between reals and unsigned eight-bit integers; zero is one of them."""

    def __init__(self, low: float, high: float) -> None:
        low, high = min(low, 0.0), max(high, 0.0)
        self.step = max(high - low, _MIN_SCALE) / _LEVELS
        self.zero = round(-low / self.step)

    def encode(self, x: Tensor) -> Tensor:
        """Round to integers in place, clipped to the range."""
        return x.div_(self.step).round_().add_(self.zero).clamp_(0, _LEVELS).to(torch.uint8)


class _First:
    """The exact first convolution with ReLU and quantisation, whose scale is fused into weights and bias."""

    def __init__(self, convolution: ExactConv2d, target: _Scale) -> None:
        self.weight = (convolution.weight / target.step).contiguous(memory_format=torch.channels_last)
        self.stride, self.padding = convolution.stride, convolution.padding
        # Truncation with + 0.5 rounds; the clamp at the integer of zero is the ReLU.
        self.bias = cast("Tensor", convolution.bias) / target.step + target.zero + 0.5
        self.step, self.zero = target.step, target.zero

    def __call__(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Map float32 (n, inputs, y, x) to unsigned integers (n, outputs, y, x); `shift` (1, outputs) is added."""
        bias = self.bias if shift is None else self.bias + shift[0] / self.step
        y = nn.functional.conv2d(x, self.weight, bias, self.stride, self.padding)
        return y.clamp_(self.zero, _LEVELS).to(torch.uint8)


class _Convolution:
    """A convolution of integers, with ReLU and rounding to the scale of the next layer."""

    def __init__(self, weight: Tensor, bias: Tensor, source: _Scale, target: _Scale | None, *, relu: bool) -> None:
        steps = (weight.abs().amax(dim=(1, 2, 3)) / _WEIGHT_LEVELS).clamp_min(_MIN_SCALE)
        whole = (weight / steps[:, None, None, None]).round()
        self.bias, self.steps, self.source, self.target, self.relu = bias, steps, source, target, relu
        self.padding = weight.shape[-1] // 2
        self.whole = whole.to(memory_format=torch.channels_last)
        if is_native():
            self.zeros = torch.zeros(len(steps), dtype=torch.int32)
            ones, pads = [1, 1], [self.padding] * 2
            self.packed = torch.ops.onednn.qconv_prepack(
                whole.to(torch.int8), steps, source.step, source.zero, ones, pads, ones, 1, None
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Map unsigned integers (n, inputs, y, x) to unsigned integers, or to float32 without a target scale."""
        if not is_native():
            return self._in_float(x)
        step, zero, dtype = 1.0, 0, torch.float32
        if self.target is not None:
            step, zero, dtype = self.target.step, self.target.zero, torch.uint8
        ones, pads = [1, 1], [self.padding] * 2
        return cast(
            "Tensor",
            torch.ops.onednn.qconv2d_pointwise(
                x, self.source.step, self.source.zero, self.packed, self.steps, self.zeros, self.bias,
                ones, pads, ones, 1, step, zero, dtype, "relu" if self.relu else "none", [], "",
            ),
        )  # fmt: skip

    def _in_float(self, x: Tensor) -> Tensor:
        sums = nn.functional.conv2d(x.float() - self.source.zero, self.whole, padding=self.padding)
        y = sums * (self.steps * self.source.step)[:, None, None] + self.bias[:, None, None]
        y = y.clamp_min_(0) if self.relu else y
        return y if self.target is None else self.target.encode(y)


class Int8UNet(nn.Module):
    """A fused `UNet` in eight bits, for inference on the host.

    Parameters
    ----------
    network : UNet
        Fused, in float32.
    ranges : mapping of str to (float, float)
        Result of `measure_ranges` for the network.

    Raises
    ------
    InputError
        If the range of a layer is absent.
    """

    def __init__(self, network: UNet, ranges: Ranges) -> None:
        super().__init__()
        if absent := set(_outputs_of(network)) - set(ranges):
            raise InputError("int8", f"no range of {', '.join(sorted(absent))}", "one for each layer on the card")
        if not is_native():
            _warn_once()
        self.stem, self.radius, self.grid = network.stem, network.radius, network.grid
        self.shift = network.shift
        self.trunk = _Trunk(network, ranges)
        self.head = _plain(network.head, self.trunk.scale, None)
        self.fine = None if network.fine is None else _Fine(network, network.fine, self.trunk.scale, ranges)

    def forward(self, x: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Map float32 (n, inputs, y, x) and (1, conditions) to float32 (n, outputs, y, x)."""
        image = x.contiguous(memory_format=torch.channels_last)
        seen = self.trunk(image, self.shift(conditions))
        coarse = nn.functional.pixel_shuffle(self.head(seen), self.stem)
        return coarse if self.fine is None else coarse.add_(self.fine(image, seen))


class _Trunk:
    """A `UNet` without its head, in eight bits.

    Parameters
    ----------
    network : UNet
    ranges : mapping of str to (float, float)
    prefix : str
        Prefix of the names of its layers.
    last : _Scale, optional
        Scale of the output, by default that of the last layer.
    """

    def __init__(self, network: UNet, ranges: Ranges, prefix: str = "", last: _Scale | None = None) -> None:
        own = {name.removeprefix(prefix): one for name, one in ranges.items() if name.startswith(prefix)}
        self.pools, self.adds = network.pools, network.merge == "add"
        joint = {level: _join(own, network, level) for level in range(self.pools)}
        self.zeros = {level: scale.zero for level, scale in joint.items()}
        ends = joint if self.pools or last is None else {0: last}
        self.down: list[list[_Convolution]] = []
        self.rise: list[_Convolution] = []
        self.up: list[list[_Convolution]] = []
        alone = len(cast("ConvStack", network.down[0]).convolutions) == 1
        scale = ends[0] if alone and ends else _Scale(*own["down.0.0"])
        self.first = _First(network.first, scale)
        for level, block in enumerate(cast("list[ConvStack]", network.down)):
            layers, scale = _stack(block, f"down.{level}", scale, own, ends.get(level), skip=int(level == 0))
            self.down.append(layers)
        for level in reversed(range(self.pools)):
            rise = cast("nn.ConvTranspose2d", network.rise[level])
            # A transposed convolution of stride 2 is a 1 x 1 convolution to four times the channels, a set per corner.
            weight = rise.weight.permute(2, 3, 1, 0).reshape(-1, rise.in_channels, 1, 1)
            bias = cast("Tensor", rise.bias).repeat(4)
            self.rise.insert(0, _Convolution(weight, bias, scale, joint[level], relu=False))
            end = last if level == 0 else None
            layers, scale = _stack(cast("ConvStack", network.up[level]), f"up.{level}", joint[level], own, end)
            self.up.insert(0, layers)
        self.scale = scale

    def __call__(self, image: Tensor, shift: Tensor | None = None) -> Tensor:
        """Map float32 (n, inputs, y, x) to unsigned integers (n, channels, y / stem, x / stem)."""
        x = self.first(image, shift)
        passed = []
        for level, layers in enumerate(self.down):
            x = x if level == 0 else _halved(x)
            for layer in layers:
                x = layer(x)
            passed.append(x)
        for level in reversed(range(self.pools)):
            risen = self.rise[level](x)
            x = _add(passed[level], risen, self.zeros[level]) if self.adds else _concatenate(passed[level], risen, 2)
            for layer in self.up[level]:
                x = layer(x)
        return x


class _Fine:
    """`FineLayers`, and the optional second U-Net, in eight bits."""

    def __init__(self, network: UNet, layers: FineLayers, source: _Scale, ranges: Ranges) -> None:
        look = cast("ExactConv2d", layers.look.convolutions[0])
        names = ["fine.look.0", "fine.spread"]
        if network.close is not None:
            names.append(f"close.{_last_of(network.close)}")
        joint = _Scale(min(ranges[name][0] for name in names), max(ranges[name][1] for name in names))
        self.stem, self.look = layers.stem, _First(look, joint)
        width, corners = look.out_channels, layers.stem**2
        # Sorted by corner, as `_concatenate` expects.
        weight = layers.spread.weight.unflatten(0, (width, corners)).transpose(0, 1).flatten(0, 1)
        bias = cast("Tensor", layers.spread.bias).unflatten(0, (width, corners)).T.flatten()
        self.spread = _Convolution(weight, bias, source, joint, relu=False)
        self.settle, last = _stack(layers.settle, "fine.settle", joint, ranges)
        self.head = _plain(layers.head, last, None)
        self.close = None if network.close is None else _Trunk(network.close, ranges, "close.", joint)
        self.close_head = None if network.close is None else _plain(network.close.head, joint, None)

    def __call__(self, image: Tensor, coarse: Tensor) -> Tensor:
        """Map a float32 image and integer features of its folded pixels to float32 (n, outputs, y, x)."""
        closely = [] if self.close is None else [self.close(image)]
        x = _concatenate(self.look(image), self.spread(coarse), self.stem, *closely)
        for layer in self.settle:
            x = layer(x)
        output = self.head(x)
        return output if self.close_head is None else output.add_(self.close_head(*closely))


def _plain(convolution: nn.Conv2d, source: _Scale, target: _Scale | None) -> _Convolution:
    return _Convolution(convolution.weight, cast("Tensor", convolution.bias), source, target, relu=False)


def measure_ranges(network: UNet, examples: Iterable[Sequence[Tensor]]) -> dict[str, list[float]]:
    """Return the range of the output of each layer of a fused network on some of its arguments, after ReLU."""
    ranges: dict[str, list[float]] = {}

    def observe(name: str, *, relu: bool) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            values = output.detach().float().flatten()
            beyond = max(1, int(_CLIPPED_FRACTION * values.numel()))
            high = max(0.0, float(values.topk(beyond).values[-1]))
            low = 0.0 if relu else min(0.0, -float((-values).topk(beyond).values[-1]))
            before = ranges.get(name, [0.0, 0.0])
            ranges[name] = [round(min(low, before[0]), 4), round(max(high, before[1]), 4)]

        return hook

    handles = [layer.register_forward_hook(observe(name, relu=relu)) for name, (layer, relu) in _layers(network)]
    try:
        with torch.inference_mode():
            for batch in examples:
                network(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def _layers(network: UNet) -> Iterator[tuple[str, tuple[nn.Module, bool]]]:
    for kind in ("down", "up"):
        for level, block in enumerate(getattr(network, kind)):
            for index, activation in enumerate(block.activations):
                yield f"{kind}.{level}.{index}", (activation, True)
    for level, rise in enumerate(network.rise):
        yield f"rise.{level}", (rise, False)
    if network.merge == "add":
        for level, join in enumerate(network.join):
            yield f"join.{level}", (join, False)
    if network.fine is not None:
        for name, block in (("look", network.fine.look), ("settle", network.fine.settle)):
            for index, activation in enumerate(block.activations):
                yield f"fine.{name}.{index}", (activation, True)
        yield "fine.spread", (network.fine.spread, False)
    if network.close is not None:
        yield from ((f"close.{name}", layer) for name, layer in _layers(network.close))


def _outputs_of(network: UNet) -> list[str]:
    return [name for name, _ in _layers(network)]


def _last_of(network: UNet) -> str:
    """Return the name of the last layer before a network's head."""
    kind, block = ("up", network.up[0]) if network.pools else ("down", network.down[0])
    return f"{kind}.0.{len(cast('ConvStack', block).convolutions) - 1}"


def _join(ranges: Ranges, network: UNet, level: int) -> _Scale:
    """Return the common scale of a skip connection, the upsampled features that it is merged with, and their sum."""
    last = len(cast("ConvStack", network.down[level]).convolutions) - 1
    names = [f"down.{level}.{last}", f"rise.{level}", *([f"join.{level}"] if network.merge == "add" else [])]
    return _Scale(min(ranges[name][0] for name in names), max(ranges[name][1] for name in names))


def _stack(
    block: ConvStack, name: str, scale: _Scale, ranges: Ranges, last: _Scale | None = None, *, skip: int = 0
) -> tuple[list[_Convolution], _Scale]:
    """Return the layers of a stack but the first `skip`, and the scale of its output."""
    layers = []
    for index, convolution in enumerate(block.convolutions):
        if index < skip:
            continue
        end = index == len(block.convolutions) - 1
        target = last if end and last is not None else _Scale(*ranges[f"{name}.{index}"])
        conv = cast("nn.Conv2d", convolution)
        layers.append(_Convolution(conv.weight, cast("Tensor", conv.bias), scale, target, relu=True))
        scale = target
    return layers, scale


def _halved(x: Tensor) -> Tensor:
    """Return the maximum of each 2 x 2 pixels."""
    two, one, none = [2, 2], [1, 1], [0, 0]
    return cast("Tensor", torch.ops.quantized.max_pool2d(x, two, two, none, one, False))


def _add(passed: Tensor, risen: Tensor, zero: int) -> Tensor:
    """Add a skip connection and upsampled features of the same scale; channels of the latter are sorted by corner."""
    n, width, ny, nx = passed.shape
    skip = passed.permute(0, 2, 3, 1).view(n, ny // 2, 2, nx // 2, 2, width)
    corners = risen.permute(0, 2, 3, 1).view(n, ny // 2, nx // 2, 2, 2, width).transpose(2, 3)
    total = skip.to(torch.int16) + corners
    both = total.sub_(zero).clamp_(0, _LEVELS).to(torch.uint8)
    return both.view(n, ny, nx, width).permute(0, 3, 1, 2)


def _concatenate(passed: Tensor, risen: Tensor, times: int, *more: Tensor) -> Tensor:
    """Concatenate a skip connection, upsampled features and further features at full resolution.

    The channels of the upsampled features are sorted by corner; each pixel becomes `times` x `times` pixels.
    """
    n, width, ny, nx = passed.shape
    end = width + risen.shape[1] // times**2
    both = torch.empty((n, ny, nx, end + sum(one.shape[1] for one in more)), dtype=passed.dtype)
    both[..., :width] = passed.permute(0, 2, 3, 1)
    corners = both.view(n, ny // times, times, nx // times, times, -1)[..., width:end]
    folded = risen.permute(0, 2, 3, 1).reshape(n, ny // times, nx // times, times, times, end - width)
    corners.copy_(folded.permute(0, 1, 3, 2, 4, 5))
    for one in more:
        both[..., end : end + one.shape[1]] = one.permute(0, 2, 3, 1)
        end += one.shape[1]
    return both.permute(0, 3, 1, 2)
