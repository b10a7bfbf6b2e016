"""The Bi-WKV4 operator, `hpcm::biwkv4`, defined by its formula (Vision-RWKV, arXiv 2403.02308), per channel:

    y_t = (sum_{i != t} e^(k_i - w(|t-i|-1)) v_i + e^(u + k_t) v_t) / (sum_{i != t} e^(k_i - w(|t-i|-1)) + e^(u + k_t))

Three backends compute it: plain PyTorch (`scan`), C++ and CUDA (`native`, from csrc/). In float32, and in half types
that are computed in float32, the three perform the same operations in the same order and their results are equal bit
for bit, across calls, thread counts and backends; denormal flushing (`torch.set_flush_denormal`) must be the same on
both sides. (Tested on the CPU and on an H200.) In float64, and for gradients, C++ gives
the same bits for any thread count too, but backends differ by rounding.

HPCM_OPS=auto|torch|cpp|cuda chooses: `auto` takes the compiled backend of the tensors' device, compiling it at its
first use if there is a compiler, and PyTorch otherwise; `torch` never compiles; `cpp` and `cuda` require that backend
for tensors on its device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcm_codec.ops import build, native, scan

PARAMETER_TYPES = (torch.float32, torch.float64)
TOKEN_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LONGEST = (1 << 24) - 1  # tokens; float32 holds every distance


def biwkv4(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bi-WKV4 over T tokens; differentiable once in every argument.

    w: (C,) decay per token, already divided by T, of either sign; float32 or float64.
    u: (C,) boost of the token itself, already divided by T; w's dtype.
    k: (B, T, C) keys; float16, bfloat16, float32 or float64. T < 2^24.
    v: (B, T, C) values; k's dtype.
    Returns (B, T, C), contiguous, in k's dtype: weighted means of v, free of NaN and Inf for every finite input. The
    arithmetic is float64 if any argument is, float32 otherwise. Strided inputs are copied.

    Raises ValueError for shapes or devices that do not fit, TypeError for dtypes, BuildError when HPCM_OPS requires a
    backend that cannot be built, UsageError when HPCM_OPS has an unknown value.

    >>> tokens = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1)
    >>> biwkv4(torch.zeros(1), torch.zeros(1), torch.zeros_like(tokens), tokens).flatten().tolist()
    [3.0, 3.0, 3.0]
    """
    y: Tensor = torch.ops.hpcm.biwkv4(w, u, k, v)
    return y


def choose_backend(device: torch.device, arithmetic: torch.dtype) -> str:
    """'torch', 'cpp' or 'cuda' for tensors on `device`; the last two are loaded. Raises as `biwkv4` does."""
    by_device: dict[str, build.Backend] = {"cpu": "cpp", "cuda": "cuda"}
    wanted = by_device.get(device.type)
    build.setting()  # an unknown value is an error on any device
    if wanted is None or (wanted == "cuda" and arithmetic != torch.float32):
        return "torch"
    return wanted if build.use_compiled(wanted, device) else "torch"


def check_arguments(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError or TypeError, naming the argument, unless they are as `biwkv4` says."""
    if k.ndim != 3:
        raise ValueError(f"biwkv4: k must be (B, T, C), got {tuple(k.shape)}")
    if v.shape != k.shape:
        raise ValueError(f"biwkv4: v must have k's shape {tuple(k.shape)}, got {tuple(v.shape)}")
    for name, parameter in (("w", w), ("u", u)):
        if parameter.shape != k.shape[2:]:
            raise ValueError(f"biwkv4: {name} must be (C,) = ({k.shape[2]},), got {tuple(parameter.shape)}")
        if parameter.dtype not in PARAMETER_TYPES:
            raise TypeError(f"biwkv4: {name} must be float32 or float64, got {parameter.dtype}")
    if k.dtype not in TOKEN_TYPES:
        raise TypeError(f"biwkv4: k must be float16, bfloat16, float32 or float64, got {k.dtype}")
    if u.dtype != w.dtype or v.dtype != k.dtype:
        raise TypeError(f"biwkv4: w and u, k and v must agree; got {w.dtype} and {u.dtype}, {k.dtype} and {v.dtype}")
    if not w.device == u.device == k.device == v.device:
        raise ValueError(f"biwkv4: all arguments on one device, got {w.device}, {u.device}, {k.device}, {v.device}")
    if k.shape[1] > LONGEST:
        raise ValueError(f"biwkv4: at most {LONGEST} tokens, got {k.shape[1]}")


@torch.library.custom_op("hpcm::biwkv4", mutates_args=())
def forward_op(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    check_arguments(w, u, k, v)
    y = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if k.numel() == 0:
        return y
    arithmetic = torch.promote_types(w.dtype, k.dtype)
    backend = choose_backend(k.device, arithmetic)
    w, u = (x.to(arithmetic).contiguous() for x in (w, u))
    if backend == "cuda":  # reads and writes half types itself
        native.cuda_forward(w, u, k.contiguous(), v.contiguous(), y)
        return y
    k, v = (x.to(arithmetic).contiguous() for x in (k, v))
    result = native.cpp_forward(w, u, k, v) if backend == "cpp" else scan.forward(w, u, k, v)
    return result.to(y.dtype)


@torch.library.custom_op("hpcm::biwkv4_backward", mutates_args=())
def backward_op(w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if k.numel() == 0:
        return torch.zeros_like(w), torch.zeros_like(u), torch.empty(k.shape).to(k), torch.empty(v.shape).to(v)
    arithmetic = torch.promote_types(w.dtype, k.dtype)
    backend = choose_backend(k.device, arithmetic)
    token_type = k.dtype
    parameters = [x.to(arithmetic).contiguous() for x in (w, u)]
    tokens = [x.to(token_type if backend == "cuda" else arithmetic).contiguous() for x in (k, v, grad_y)]
    differentiate = {"torch": scan.backward, "cpp": native.cpp_backward, "cuda": native.cuda_backward}[backend]
    grad_w, grad_u, grad_k, grad_v = differentiate(*parameters, *tokens)
    return grad_w.to(w.dtype), grad_u.to(u.dtype), grad_k.to(token_type), grad_v.to(token_type)


@forward_op.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    check_arguments(w, u, k, v)
    return torch.empty(k.shape, dtype=k.dtype, device=k.device)


@backward_op.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    return torch.empty(w.shape).to(w), torch.empty(u.shape).to(u), grad_k, grad_v


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.hpcm.biwkv4_backward(*ctx.saved_tensors, grad_y)
    return gradients


forward_op.register_autograd(_differentiate, setup_context=_remember)
