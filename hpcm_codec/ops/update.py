"""The update of weights on the CPU: the norm of the gradients, and AdamW together with the weights' running average.

Both are bounded by memory. Compiled (csrc/update_cpu.cpp) they read and write every array once; the plain PyTorch here defines
what they compute, and is used where nothing can be compiled. Both give the same numbers to float32 rounding.

Weights come in pieces, 1-D contiguous float32 tensors of any length. Each piece has a gradient in every process that trains;
those of this machine's other processes lie in memory that is shared.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcm_codec.ops import build

CPU = torch.device("cpu")
Pieces = Sequence[Tensor]


@dataclass(frozen=True)
class Weights:
    """Pieces of weights and what AdamW and the average keep of them; four tensors of one length for each piece."""

    parameters: Pieces
    averages: Pieces
    means: Pieces  # exponential moving average of gradients: exp_avg of torch.optim.AdamW
    squares: Pieces  # and of their squares: exp_avg_sq

    def some(self, indexes: Sequence[int]) -> Weights:
        """Only those pieces, in that order."""
        groups = (self.parameters, self.averages, self.means, self.squares)
        return Weights(*([group[n] for n in indexes] for group in groups))

    @cached_property
    def addresses(self) -> Addresses:
        return Addresses(self.parameters, self.averages, self.means, self.squares)


@dataclass(frozen=True)
class AdamW:
    """What holds for all pieces of a step; the defaults are those of torch.optim.AdamW.

    scale:        gradients are multiplied by it: 1 / processes for their mean, and less to clip them.
    average_part: what the new weights have in the averages, in [0, 1].
    """

    scale: float = 1.0
    average_part: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Rates:
    """Learning rate, weight decay and number of steps, this one included, of each piece: float64 arrays."""

    rate: NDArray[np.float64]
    decay: NDArray[np.float64]
    steps: NDArray[np.float64]

    def factors(self, betas: tuple[float, float]) -> list[NDArray[np.float64]]:
        """For each piece: what decay leaves of a weight, the length of a step, and the factor of the squares' root."""
        return [
            1 - self.rate * self.decay,
            self.rate / (1 - betas[0] ** self.steps),
            1 / np.sqrt(1 - betas[1] ** self.steps),
        ]


class Addresses:
    """Where pieces lie in memory, as the C functions take it; keeps the tensors alive.

    Raises TypeError or ValueError for what they cannot read, since C++ gets raw pointers and cannot check them.
    """

    def __init__(self, *groups: Pieces) -> None:
        self.tensors = [list(group) for group in groups]
        for tensor in (tensor for group in groups for tensor in group):
            if tensor.dtype != torch.float32:
                raise TypeError(f"expected float32, got {tensor.dtype}")
            if tensor.dim() != 1 or tensor.device != CPU or not tensor.is_contiguous():
                raise ValueError(f"expected one contiguous axis on the CPU, got {tuple(tensor.shape)}, {tensor.device}")
        lengths = [[tensor.shape[0] for tensor in group] for group in groups]
        if any(other != lengths[0] for other in lengths):
            raise ValueError(f"pieces differ in number or length: {lengths}")
        self.lengths = np.array(lengths[0], dtype=np.int64)
        self.table = np.array([[x.data_ptr() for x in group] for group in groups], dtype=np.uint64)

    def pointer(self, group: int = 0) -> ctypes.c_void_p:
        """The addresses of that group's pieces, and after them those of the next group."""
        return ctypes.c_void_p(self.table.ctypes.data + group * self.table.strides[0])


def compiled() -> bool:
    """Whether the compiled functions do the work here; as `build.use_compiled`."""
    return build.use_compiled("update")


def squared_norm(gradients: Sequence[Pieces]) -> float:
    """The sum of squares of the gradients' sum over processes; the same whatever the number of threads.

    gradients: for each process, its gradients of all pieces.
    """
    if not compiled():
        return squared_norm_plain(gradients)
    addresses = Addresses(*gradients)
    result = ctypes.c_double()
    _call("squared_norm", addresses.pointer(), addresses.lengths, *_sizes(addresses), ctypes.byref(result))
    return result.value


def adamw(weights: Weights, gradients: Sequence[Pieces], rates: Rates, step: AdamW) -> None:
    """One step of AdamW as torch.optim.AdamW takes it, and of the averages; changes all four tensors of every piece.

    gradients: for each process, its gradients of all pieces; they are added and multiplied by `step.scale`.
    """
    if not compiled():
        adamw_plain(weights, gradients, rates, step)
        return
    kept = weights.addresses
    addresses = Addresses(*gradients)
    if not np.array_equal(kept.lengths, addresses.lengths):
        raise ValueError("gradients have other lengths than weights")
    factors = [np.ascontiguousarray(np.broadcast_to(f, kept.lengths.shape)) for f in rates.factors(step.betas)]
    scalars = (step.scale, *step.betas, step.epsilon, step.average_part)
    pointers = [kept.pointer(group) for group in range(4)]
    _call("adamw", addresses.pointer(), *pointers, kept.lengths, *factors, *_sizes(addresses), *scalars)


def _sizes(addresses: Addresses) -> tuple[int, int]:
    """Numbers of pieces and of processes."""
    return addresses.table.shape[1], addresses.table.shape[0]


def _call(name: str, *arguments: object) -> None:
    """Call a C function: arrays as pointers, int as int64, float as double, and the number of threads."""
    passed: list[object] = []
    for value in arguments:
        if isinstance(value, np.ndarray):
            passed.append(ctypes.c_void_p(value.ctypes.data))
        elif isinstance(value, int):
            passed.append(ctypes.c_int64(value))
        else:
            passed.append(ctypes.c_double(value) if isinstance(value, float) else value)
    build.function("update", f"hpcm_update_{name}", CPU)(*passed, ctypes.c_int64(torch.get_num_threads()))


# ------------------------------------------------------------------------------------------------- in plain PyTorch


def squared_norm_plain(gradients: Sequence[Pieces]) -> float:
    return math.fsum(float(_sum(piece).double().square().sum()) for piece in zip(*gradients, strict=True))


@torch.no_grad()
def adamw_plain(weights: Weights, gradients: Sequence[Pieces], rates: Rates, step: AdamW) -> None:
    beta1, beta2 = step.betas
    pieces = zip(weights.parameters, weights.averages, weights.means, weights.squares, strict=True)
    factors = zip(*(f.tolist() for f in rates.factors(step.betas)), strict=True)
    summed = (_sum(piece) for piece in zip(*gradients, strict=True))
    for (parameter, average, mean, square), gradient, (kept, length, root) in zip(pieces, summed, factors, strict=True):
        gradient = gradient * step.scale
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        parameter.mul_(kept).addcdiv_(mean, square.sqrt().mul_(root).add_(step.epsilon), value=-length)
        average.lerp_(parameter, step.average_part)


def _sum(piece: Sequence[Tensor]) -> Tensor:
    """One piece's gradients added over processes."""
    total = piece[0]
    for other in piece[1:]:
        total = total + other
    return total
