"""What an RWKV block does between its products, as single operations with their own gradients; see `fused`.

Planes are B×C×h×w, channels last, tokens B×T×C, both in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcm_codec.ops import training
from hpcm_codec.ops.biwkv4 import biwkv4
from hpcm_codec.ops.fused import factors_at, levels_gradient, plane_of, rows_of
from hpcm_codec.ops.training import call


class _GatedWkv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, u: Tensor, k: Tensor, v: Tensor, r: Tensor, result: tuple[Tensor]) -> Tensor:
        ctx.save_for_backward(w, u, k, v, r)
        return result[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        w, u, k, v, r = ctx.saved_tensors
        return *training.gated_wkv_backward(w, u, k, v, r, rows_of(gradient)), None


def gated_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """σ(r)·BiWKV4(w, u, k, v) of tokens; w, u: C, float32."""
    k, v, r = rows_of(k), rows_of(v), rows_of(r)
    result = training.gated_wkv(w.detach(), u.detach(), k.detach(), v.detach(), r.detach())
    if result is None:
        return torch.sigmoid(r) * biwkv4(w, u, k.float(), v.float()).to(r.dtype)
    y: Tensor = _GatedWkv.apply(w, u, k, v, r, (result,))
    return y


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, r: Tensor, x: Tensor) -> Tensor:
        r, x = rows_of(r), rows_of(x)
        ctx.save_for_backward(r, x)
        y = torch.empty_like(x)
        call("gate", r, x, y, x.numel())
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        r, x = ctx.saved_tensors
        by_r, by_x = torch.empty_like(r), torch.empty_like(x)
        call("gate_backward", r, x, rows_of(gradient), by_r, by_x, x.numel())
        return by_r, by_x


def gate(r: Tensor, x: Tensor) -> Tensor:
    """σ(r)·x of tokens."""
    y: Tensor = _Gate.apply(r, x)
    return y


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = rows_of(x)
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        call("squared_relu", x, y, x.numel())
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        by_x = torch.empty_like(x)
        call("squared_relu_backward", x, rows_of(gradient), by_x, x.numel())
        return by_x


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)² of tokens."""
    y: Tensor = _SquaredReLU.apply(x)
    return y


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        rows = rows_of(x)
        channels = rows.shape[-1]
        tokens = rows.numel() // channels
        y, moments = torch.empty_like(rows), weight.new_empty(tokens, 2)
        ctx.save_for_backward(rows, weight, moments)
        call("layer_norm", rows, weight.detach(), bias.detach(), torch.tensor([epsilon]), y, moments, tokens, channels)
        return plane_of(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, moments = ctx.saved_tensors
        x, by_weight, by_bias = torch.empty_like(rows), torch.zeros_like(weight), torch.zeros_like(weight)
        call(
            "layer_norm_backward", rows, weight, moments, rows_of(gradient), x, by_weight, by_bias, len(moments),
            rows.shape[-1],
        )  # fmt: skip
        return plane_of(x), by_weight, by_bias, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Layer normalisation over the channels of B×C×h×w."""
    y: Tensor = _LayerNorm.apply(x, weight, bias, epsilon)
    return y


class _ScaledAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor | None, branch: Tensor, levels: Tensor, rate: Tensor | None) -> Tensor:
        branch_rows = rows_of(branch)
        factors = factors_at(levels.reshape(-1, branch_rows.shape[-1]), rate)
        y = torch.empty_like(branch_rows)
        ctx.save_for_backward(branch_rows, factors)
        ctx.levels_shape, ctx.rate = levels.shape, rate
        ctx.levels = levels.numel() // branch_rows.shape[-1]
        call("scaled_add", None if x is None else rows_of(x), branch_rows, factors, y, *_sizes(branch_rows, factors))
        return plane_of(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        branch, factors = ctx.saved_tensors
        g, by_branch, by_factor = rows_of(gradient), torch.empty_like(branch), torch.zeros_like(factors)
        call("scaled_add_backward", g, branch, factors, by_branch, by_factor, *_sizes(branch, factors))
        x = plane_of(g) if ctx.needs_input_grad[0] else None
        return x, plane_of(by_branch), levels_gradient(by_factor, ctx.rate, ctx.levels).view(ctx.levels_shape), None


def _sizes(rows: Tensor, factors: Tensor) -> tuple[int, int, int]:
    """Rows of factors, tokens that share one, channels."""
    channels = rows.shape[-1]
    if len(factors) not in (1, len(rows)):
        raise ValueError(f"factors for {len(factors)} pictures, but there are {len(rows)}")
    return len(factors), rows.numel() // channels // len(factors), channels


def scaled_add(x: Tensor | None, branch: Tensor, levels: Tensor, rate: Tensor | None = None) -> Tensor:
    """x + factor·branch, or factor·branch, of B×C×h×w; levels: C factors, or L×C, of level weights `rate` B×L."""
    y: Tensor = _ScaledAdd.apply(x, branch, levels, rate)
    return y
