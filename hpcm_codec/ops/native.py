"""Calls into the compiled libraries (csrc/) with raw pointers; `build` compiles and loads them.

A plain C interface keeps torch's C++ headers out of the build: it takes seconds instead of a minute and does not depend
on torch's ABI. All tensors are contiguous, non-empty and on one device; their memory outlives the call.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from hpcm_codec.ops import build
from hpcm_codec.ops.scan import chunk_length

NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _extent(k: Tensor) -> list[ctypes.c_int64 | ctypes.c_int]:
    """Batch, length, channels and chunk length, as the C functions take them."""
    return [*(ctypes.c_int64(size) for size in k.shape), ctypes.c_int(chunk_length(k.shape[1]))]


def _scratch(k: Tensor, dtype: torch.dtype, *, per_chunk: int, per_token: int = 0) -> Tensor:
    """Uninitialised working memory: so many numbers per (batch, chunk, channel) and per (batch, token, channel)."""
    batch, length, channels = k.shape
    chunks = -(-length // chunk_length(length))
    return torch.empty(batch * channels * (chunks * per_chunk + length * per_token), dtype=dtype, device=k.device)


def _empty_gradients(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised gradients in w's dtype, which is the arithmetic's."""
    return (
        torch.empty_like(w),
        torch.empty_like(u),
        torch.empty_like(k, dtype=w.dtype),
        torch.empty_like(v, dtype=w.dtype),
    )


def cpp_forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, lanes: str = "") -> Tensor:
    """y (B, T, C); all float32 or all float64, on the CPU.

    lanes: '' or, for tests and float32 only, '_scalar': the instantiation that a CUDA thread runs.
    """
    y = torch.empty_like(k)
    scratch = _scratch(k, k.dtype, per_chunk=8)
    function = build.function("cpp", f"hpcm_biwkv4_forward_{NAMES[k.dtype]}{lanes}", k.device)
    function(*_pointers(w, u, k, v, y, scratch), *_extent(k), ctypes.c_int(torch.get_num_threads()))
    return y


def cpp_backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad_y: Tensor, *, lanes: str = ""
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v; as `cpp_forward`."""
    gradients = _empty_gradients(w, u, k, v)
    scratch = _scratch(k, k.dtype, per_chunk=14, per_token=4)
    function = build.function("cpp", f"hpcm_biwkv4_backward_{NAMES[k.dtype]}{lanes}", k.device)
    pointers = _pointers(w, u, k, v, grad_y, *gradients, scratch)
    function(*pointers, *_extent(k), ctypes.c_int(torch.get_num_threads()))
    return gradients


def _launch(name: str, k: Tensor, tensors: tuple[Tensor, ...]) -> None:
    """Queue on k's device's current stream; raises RuntimeError when the launch fails."""
    with torch.cuda.device(k.device):
        function = build.function("cuda", f"{name}_{NAMES[k.dtype]}", k.device)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        message = function(*_pointers(*tensors), *_extent(k), stream)
    if message is not None:
        raise RuntimeError(f"{name}: {message.decode()}")


def cuda_forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, y: Tensor) -> None:
    """Fill y (B, T, C); w, u float32; k, v, y float16, bfloat16 or float32."""
    _launch("hpcm_biwkv4_forward", k, (w, u, k, v, y, _scratch(k, w.dtype, per_chunk=8)))


def cuda_backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v, all float32; grad_y in k's dtype."""
    gradients = _empty_gradients(w, u, k, v)
    scratch = _scratch(k, w.dtype, per_chunk=14, per_token=4)
    _launch("hpcm_biwkv4_backward", k, (w, u, k, v, grad_y, *gradients, scratch))
    return gradients
