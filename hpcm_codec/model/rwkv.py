"""The RWKV block: OmniShift, spatial mix by bi-directional WKV, channel mix.

Sources: Vision-RWKV (arXiv 2403.02308) for the bi-directional WKV, Restore-RWKV (arXiv 2407.11087) for OmniShift,
LALIC (CVPR 2025, arXiv 2502.05741) for their use in a codec. Tensors are B×C×h×w; T = h·w tokens in row-major order.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from hpcm_codec.model.blocks import pointwise, pointwise_and_input
from hpcm_codec.ops import fused, fused_mixing
from hpcm_codec.ops.biwkv4 import biwkv4


# Attributes that hold modules or parameters name the tensors of checkpoints: renaming one makes every file undecodable (CONTRIBUTING.md).
class OmniShift(nn.Module):
    """α₀·x + α₁·dw1×1(x) + α₂·dw3×3(x) + α₃·dw5×5(x); in evaluation one depthwise 5×5 with the same result."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([1.0, 0.1, 0.1, 0.1]))
        self.conv1x1 = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.conv5x5 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)

    def folded_kernel(self) -> Tensor:
        """The one 5×5 depthwise kernel, C×1×5×5, that the four branches add up to."""
        kernel = self.alpha[3] * self.conv5x5.weight
        kernel = kernel + functional.pad(self.alpha[2] * self.conv3x3.weight, (1, 1, 1, 1))
        return kernel + functional.pad(self.alpha[0] + self.alpha[1] * self.conv1x1.weight, (2, 2, 2, 2))

    def branches(self, x: Tensor) -> Tensor:
        """The four branches one by one, as in training."""
        return (
            self.alpha[0] * x
            + self.alpha[1] * self.conv1x1(x)
            + self.alpha[2] * self.conv3x3(x)
            + self.alpha[3] * self.conv5x5(x)
        )

    def forward(self, x: Tensor) -> Tensor:
        # Folding the kernel costs C·25 operations, so the folded form serves training too: its gradient is the same.
        if fused.active(x, self.conv5x5.weight):
            return fused.depthwise(x, self.folded_kernel())
        return functional.conv2d(x, self.folded_kernel().to(x.dtype), padding=2, groups=x.shape[1])


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of B×C×h×w, in float32 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if fused.active(x, self.weight):
            return fused_mixing.layer_norm(x, self.weight, self.bias, self.eps)
        return rearrange(super().forward(rearrange(x, "b c h w -> b h w c")), "b h w c -> b c h w")


def _tokens(x: Tensor) -> Tensor:
    """B×C×h×w → B×T×C; a view when x is channels_last."""
    return rearrange(x, "b c h w -> b (h w) c")


def _plane(tokens: Tensor, height: int) -> Tensor:
    """The inverse of `_tokens`, a view."""
    return rearrange(tokens, "b (h w) c -> b c h w", h=height)


class SpatialMix(nn.Module):
    """linear(σ(r) · BiWKV4(decay/T, boost/T, k, v)), with k, v, r linear in the shifted input; no biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = OmniShift(channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)
        # Some channels start with a long range and some with a short one, as in Vision-RWKV.
        spread = torch.linspace(0, 1, channels)
        self.decay = nn.Parameter(-5 + 8 * spread**0.9)
        self.boost = nn.Parameter(0.5 * ((torch.arange(channels) + 1) % 3 - 1).float())

    def forward(self, x: Tensor) -> Tensor:
        tokens = _tokens(self.shift(x))
        length = tokens.shape[1]
        key, tokens = pointwise_and_input(self.key, tokens)
        value, tokens = pointwise_and_input(self.value, tokens)
        receptance = pointwise(self.receptance, tokens)
        if fused.active(x, self.decay):
            mixed = fused_mixing.gated_wkv(self.decay / length, self.boost / length, key, value, receptance)
        else:
            wide = torch.promote_types(key.dtype, torch.float32)
            mixed = biwkv4(
                self.decay.to(wide) / length, self.boost.to(wide) / length, key.to(wide).contiguous(),
                value.to(wide).contiguous(),
            )  # fmt: skip
            mixed = torch.sigmoid(receptance) * mixed.to(receptance.dtype)
        out = pointwise(self.output, mixed)
        return _plane(out, x.shape[-2])


class ChannelMix(nn.Module):
    """σ(linear_r(s)) · linear_v(relu(linear_k(s))²), s the shifted input; no biases."""

    def __init__(self, channels: int, hidden_rate: float) -> None:
        super().__init__()
        hidden = int(channels * hidden_rate)
        self.shift = OmniShift(channels)
        self.key = nn.Linear(channels, hidden, bias=False)
        self.value = nn.Linear(hidden, channels, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = _tokens(self.shift(x))
        key, tokens = pointwise_and_input(self.key, tokens)
        receptance = pointwise(self.receptance, tokens)
        if fused.active(x, self.key.weight):
            out = fused_mixing.gate(receptance, pointwise(self.value, fused_mixing.squared_relu(key)))
        else:
            out = torch.sigmoid(receptance) * pointwise(self.value, functional.relu(key).square())
        return _plane(out, x.shape[-2])


class RWKVBlock(nn.Module):
    """z ← z + γ₁·SpatialMix(LayerNorm(z)); z ← z + γ₂·ChannelMix(LayerNorm(z)), on B×C×h×w."""

    def __init__(self, channels: int, hidden_rate: float = 4.0) -> None:
        super().__init__()
        self.norm1 = ChannelLayerNorm(channels)
        self.norm2 = ChannelLayerNorm(channels)
        self.spatial_mix = SpatialMix(channels)
        self.channel_mix = ChannelMix(channels, hidden_rate)
        self.gamma1 = nn.Parameter(torch.full((channels,), 0.1))
        self.gamma2 = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        if fused.active(x, self.gamma1):
            x = fused_mixing.scaled_add(x, self.spatial_mix(self.norm1(x)), self.gamma1)
            return fused_mixing.scaled_add(x, self.channel_mix(self.norm2(x)), self.gamma2)
        x = x + self.gamma1[:, None, None] * self.spatial_mix(self.norm1(x))
        return x + self.gamma2[:, None, None] * self.channel_mix(self.norm2(x))
