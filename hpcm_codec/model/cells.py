"""Context cells: what carries the context from one coding step to the next. Same call, (params, context) → context.

Both tensors are B×2M×h×w (scales, means). `CrossAttentionCell` is HPCM's (arXiv 2507.19125, eq. 8): windows of the
lattice attend to the old context. `RWKVContextCell` is Phase 1's replacement: linear in the number of latents. It is an `RWKVFusion`
of two inputs; one of a single input is Phase 3's network between two scales.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from hpcm_codec.model.blocks import pointwise, pointwise_and_input, recomputed, silence
from hpcm_codec.model.config import CellConfig, FusionConfig
from hpcm_codec.model.rwkv import RWKVBlock
from hpcm_codec.ops import fused


# Attributes that hold modules or parameters name the tensors of checkpoints: renaming one makes every file undecodable (CONTRIBUTING.md).
class CrossAttentionCell(nn.Module):
    """attention(q(params), k(context), v(context)) + conv1×1(params), inside non-overlapping windows.

    A window that sticks out of the lattice is padded and its padding masked, so any size works and nothing outside
    the lattice is ever attended to.
    """

    def __init__(self, channels: int, config: CellConfig) -> None:
        super().__init__()
        width = config.width or channels
        self.window, self.heads, self.residual = config.window, config.heads, config.residual
        self.query = nn.Conv2d(channels, width, 1)
        self.key = nn.Conv2d(channels, width, 1)
        self.value = nn.Conv2d(channels, width, 1)
        self.widen = nn.Conv2d(width, channels, 1, bias=False) if width != channels else None
        self.output = nn.Conv2d(channels, channels, 1)
        if self.residual:
            silence(self.output, 0.0)
            if self.widen is not None:
                silence(self.widen, 0.1)

    def _to_windows(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        """B×C×h×w → (B·windows)×heads×(window²)×(C/heads)."""
        return rearrange(
            x, "b (heads c) (y i) (x j) -> (b y x) heads (i j) c", heads=self.heads, i=window[0], j=window[1]
        )

    def _attend(self, params: Tensor, context: Tensor) -> Tensor:
        batch, _, height, width = params.shape
        # A lattice smaller than a window is one smaller window: the rest would be masked padding.
        window = (min(self.window, height), min(self.window, width))
        pad = (-width % window[1], -height % window[0])
        query, key, value = pointwise(self.query, params), pointwise(self.key, context), pointwise(self.value, context)
        mask = None
        if any(pad):
            query, key, value = (functional.pad(t, (0, pad[0], 0, pad[1])) for t in (query, key, value))
            inside = torch.zeros(1, self.heads, *query.shape[-2:], device=params.device)
            inside[..., :height, :width] = 1
            keys_inside = self._to_windows(inside, window)[:, :1, :, 0] > 0
            mask = keys_inside[:, :, None, :].repeat(batch, 1, 1, 1)
        q, k, v = (self._to_windows(t, window) for t in (query, key, value))
        if fused.active(params, self.query.weight):  # its backward pass in torch takes three times as long in bfloat16
            with torch.autocast("cpu", enabled=False):
                attended = functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = rearrange(
            attended,
            "(b y x) heads (i j) c -> b (heads c) (y i) (x j)",
            b=batch,
            y=query.shape[-2] // window[0],
            i=window[0],
        )
        return attended[..., :height, :width]

    def forward(self, params: Tensor, context: Tensor) -> Tensor:
        attended = self._attend(params, context)
        if self.widen is not None:
            attended = pointwise(self.widen, attended)
        out = pointwise(self.output, params, added=attended)
        return params + out if self.residual else out


class RWKVFusion(nn.Module):
    """conv1×1(RWKV block(conv1×1(inputs side by side))) over the whole lattice, plus the first input if `residual`.

    Called with `inputs` planes B×channels×h×w; returns one.
    """

    def __init__(self, channels: int, inputs: int, config: CellConfig | FusionConfig, *, residual: bool = True) -> None:
        super().__init__()
        width = config.width or channels
        self.residual = residual
        self.enter = nn.Conv2d(inputs * channels, width, 1)
        self.block = RWKVBlock(width, config.hidden_rate)
        self.leave = nn.Conv2d(width, channels, 1)
        if self.residual:
            silence(self.leave, 0.1)

    def forward(self, *inputs: Tensor) -> Tensor:
        entered, first = pointwise_and_input(self.enter, *inputs)
        return pointwise(self.leave, self.block(entered), added=first if self.residual else None)


class RWKVContextCell(RWKVFusion):
    """The `RWKVFusion` of (params, context)."""

    def __init__(self, channels: int, config: CellConfig) -> None:
        super().__init__(channels, 2, config, residual=config.residual)


class ContextNet(RWKVFusion):
    """The network between two scales as an RWKV block (Phase 3), with activation checkpointing in training when asked for."""

    def __init__(self, channels: int, config: FusionConfig, use_checkpoint: bool) -> None:
        super().__init__(channels, 1, config)
        self.use_checkpoint = use_checkpoint

    def forward(self, *inputs: Tensor) -> Tensor:
        return recomputed(self.use_checkpoint and self.training, super().forward, *inputs)


class ContextCell(nn.Module):
    """The cell a configuration names, with activation checkpointing in training when asked for."""

    def __init__(self, channels: int, config: CellConfig, use_checkpoint: bool) -> None:
        super().__init__()
        kinds = {"cross-attention": CrossAttentionCell, "rwkv": RWKVContextCell}
        self.inner: nn.Module = kinds[config.kind](channels, config)
        self.use_checkpoint = use_checkpoint

    def forward(self, params: Tensor, context: Tensor) -> Tensor:
        return recomputed(self.use_checkpoint and self.training, self.inner, params, context)
