"""The residual blocks that every network here is made of, and the factors that adapt them to the rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from hpcm_codec.model.precision import autocast_is_on, stream
from hpcm_codec.model.rate import interpolated
from hpcm_codec.ops import fused, fused_mixing

LEAKY_SLOPE = 0.01  # negative slope of HPCM's activations


class WithoutInitialValues(TorchFunctionMode):
    """Inside `with`, initialisation by `torch.nn.init` is skipped: parameters keep whatever their memory holds.

    The meta device would do without the memory too, but some operators on it import torch's compiler, which takes a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


# Attributes that hold modules or parameters name the tensors of checkpoints: renaming one makes every file undecodable (CONTRIBUTING.md).
class RateFactor(nn.Module):
    """A per-channel factor for each rate level, interpolated linearly between levels.

    Called with level weights B×L (rows sum to 1), it returns B×C×1×1; with one level, 1×C×1×1 whatever the rate.
    """

    def __init__(self, levels: int, channels: int, initial: float) -> None:
        super().__init__()
        self.level_values = nn.Parameter(torch.full((levels, channels), initial))

    def forward(self, rate: Tensor | None) -> Tensor:
        if rate is None or self.level_values.shape[0] == 1:
            return self.level_values[:1, :, None, None]
        return interpolated(rate, self.level_values)[:, :, None, None]

    def times(self, x: Tensor, rate: Tensor | None) -> Tensor:
        """x, B×C×h×w, times the factors."""
        if fused.active(x, self.level_values):
            return fused_mixing.scaled_add(None, x, self.level_values, rate)
        return x * self(rate).to(x.dtype)


class PartialConv(nn.Module):
    """A dense 3×3 convolution over the first quarter of the channels; the others pass through."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.active = channels // 4
        self.conv = nn.Conv2d(self.active, self.active, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        active, passive = x.split((self.active, x.shape[1] - self.active), dim=1)
        return torch.cat((self.conv(active), passive), dim=1)


class ResidualBlock(nn.Module):
    """x + factor · conv1×1(LeakyReLU(conv1×1(spatial(x)))), on B×C×h×w.

    kind "partial" is HPCM's PConvRB (expansion 4), "depthwise" its DWConvRB (expansion 2). The factor is 1 unless
    `factor_levels` > 0 asks for a learned one per rate level (one level: the same at every rate).
    """

    def __init__(
        self, channels: int, kind: Literal["partial", "depthwise"] = "depthwise", factor_levels: int = 0
    ) -> None:
        super().__init__()
        self.channels = channels
        expansion = 4 if kind == "partial" else 2
        self.spatial: nn.Module = (
            PartialConv(channels) if kind == "partial" else nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        )
        self.expand = nn.Conv2d(channels, expansion * channels, 1)
        self.project = nn.Conv2d(expansion * channels, channels, 1)
        self.factor = RateFactor(factor_levels, channels, initial=0.1) if factor_levels else None

    def forward(self, x: Tensor, rate: Tensor | None = None) -> Tensor:
        if isinstance(self.spatial, nn.Conv2d) and fused.active(x, self.expand.weight):
            spatial, expand, project = self.spatial, self.expand, self.project
            assert spatial.bias is not None and expand.bias is not None and project.bias is not None
            levels = None if self.factor is None else self.factor.level_values
            return fused.residual(
                x, spatial.weight, spatial.bias, expand.weight, expand.bias, project.weight, project.bias, levels, rate
            )
        # Fresh planes of megabytes cost more (the system zeroes them page by page) than what is computed here; no number changes.
        # Not under autocast: the branch may be narrower than x. torch.compile cannot call is_inference_mode_enabled.
        in_place = not torch.is_grad_enabled() and not autocast_is_on(x) and torch.is_inference_mode_enabled()
        hidden = pixelwise(self.expand, self.spatial(x))
        branch = pixelwise(self.project, functional.leaky_relu(hidden, LEAKY_SLOPE, inplace=in_place))
        if self.factor is not None:
            factor = self.factor(rate).to(x.dtype)
            branch = branch.mul_(factor) if in_place else branch * factor
        return branch.add_(x) if in_place else x + branch


class RateSequential(nn.Sequential):
    """A sequence of layers that passes the rate's level weights to its residual blocks."""

    def forward(self, x: Tensor, rate: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, rate) if isinstance(layer, ResidualBlock) else layer(x)
        return x


def pixelwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution of B×C×h×w; on a GPU in training as a matrix product, whose gradients are matrix products too."""
    if x.device.type == "cuda" and torch.is_grad_enabled():
        return functional.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
    return layer(x)


def pointwise(layer: nn.Conv2d | nn.Linear, *inputs: Tensor, added: Tensor | None = None) -> Tensor:
    """A 1×1 convolution of B×C×h×w, or a linear layer of tokens B×T×C, over one or two inputs side by side; plus `added`."""
    if fused.active(inputs[0], layer.weight):
        return fused.linear(layer.weight, layer.bias, *inputs, added=added)
    x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)
    y = layer(x) if isinstance(layer, nn.Linear) else pixelwise(layer, x)
    return y if added is None else y + added.to(y.dtype)


def pointwise_and_input(
    layer: nn.Conv2d | nn.Linear, *inputs: Tensor, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The result of `pointwise`, and its first input.

    Use the returned input for what else is computed with it: its gradient is then added inside the layer's backward pass, not in a pass
    over memory of its own.
    """
    if fused.active(inputs[0], layer.weight):
        return fused.linear_and_input(layer.weight, layer.bias, *inputs, added=added)
    return pointwise(layer, *inputs, added=added), inputs[0]


def recomputed(recompute: bool, work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`work(*inputs)`; if `recompute`, its activations are not kept for the backward pass but computed there once more."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(work, *inputs, use_reentrant=False)
    return work(*inputs)


def silence(layer: nn.Conv2d, weight_factor: float) -> None:
    """Scale a layer's initial weights and zero its bias, so that the branch it ends starts with small outputs."""
    with torch.no_grad():
        layer.weight.mul_(weight_factor)
        if layer.bias is not None:
            layer.bias.zero_()


class _Down2(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        even = not (x.shape[-2] % 2 or x.shape[-1] % 2)
        if even and fused.active(x, self.weight):
            return fused.halve(x, self.weight, self.bias)
        return stream(super().forward(x))


class _Up2(nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.bias is not None and fused.active(x, self.weight):
            return fused.double(x, self.weight, self.bias)
        return stream(super().forward(x, output_size))


def down2(inputs: int, outputs: int) -> nn.Conv2d:
    """Halve the resolution: 2×2 convolution of stride 2, no padding."""
    return _Down2(inputs, outputs, 2, stride=2)


def up2(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Double the resolution: 2×2 transposed convolution of stride 2, no padding."""
    return _Up2(inputs, outputs, 2, stride=2)
