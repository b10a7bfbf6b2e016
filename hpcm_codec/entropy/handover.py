"""Transfers symbols and table indexes between a device and the rANS coder, in few bytes and, from the device, without waiting.

A coding step transfers three bytes a latent: the residual in 16 bits and the table index in 8. From a GPU they are copied into pinned
memory while the GPU computes on. On the CPU nothing is copied. Numpy arrays, which are already on the host, are used directly, without
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.entropy.rans_encoder import LARGEST_SYMBOL, largest_magnitude

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Array = Any  # a numpy array or a torch tensor

SHORT_LIMIT = 2**15 - 1  # larger magnitudes are not transferred in 16 bits
BEYOND = 2 * LARGEST_SYMBOL  # marks a symbol that cannot be coded, not-a-number included


class HostCopy:
    """A transfer to the host: for a GPU, a copy queued on the device's current stream; for the CPU, the tensor itself."""

    def __init__(self, source: Tensor) -> None:
        import torch

        self._arrived: torch.cuda.Event | None = None
        self._host = source
        if source.device.type == "cuda":
            self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._host.copy_(source, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(source.device))

    def wait(self) -> NDArray[np.generic]:
        """Waits for the transfer and returns the elements; may be called in another thread."""
        if self._arrived is not None:
            self._arrived.synchronize()
        array: NDArray[np.generic] = self._host.numpy()
        return array


class CodedStep:
    """An encoder's symbols of one step: at once on the device of the latents, and on the host after the transfer.

    residual: float, any shape, in quantisation steps; indexes: integer table indexes below 256, as many.
    """

    symbols: Array  # int32, of the residual's shape

    def __init__(self, residual: Tensor, indexes: Tensor) -> None:
        import torch

        # in place: on the CPU fresh memory costs more than what is done in it
        whole = residual.round().nan_to_num_(nan=BEYOND).clamp_(-BEYOND, BEYOND)
        self.symbols = whole.to(torch.int32)
        short = whole.clamp_(-SHORT_LIMIT, SHORT_LIMIT).to(torch.int16).flatten()
        self._count = short.numel()
        self._packed = HostCopy(torch.cat((short.view(torch.uint8), indexes.flatten().to(torch.uint8))))

    def wait(self) -> tuple[NDArray[np.signedinteger[Any]], NDArray[np.uint8]]:
        """Symbols (int16, or int32 where one does not fit that) and table indexes, both 1-D. A symbol that cannot be coded is BEYOND."""
        packed = self._packed.wait()
        short, indexes = packed[: 2 * self._count].view(np.int16), packed[2 * self._count :].view(np.uint8)
        if largest_magnitude(short) >= SHORT_LIMIT:
            return self.symbols.flatten().cpu().numpy(), indexes  # rare, so waiting is acceptable
        return short, indexes


class HostStep:
    """A `CodedStep` of numpy arrays."""

    def __init__(self, residual: NDArray[np.float32], indexes: NDArray[np.uint8]) -> None:
        whole = np.rint(residual)
        np.nan_to_num(whole, copy=False, nan=BEYOND, posinf=BEYOND, neginf=-BEYOND)
        self.symbols: Array = np.clip(whole, -BEYOND, BEYOND).astype(np.int32)
        self._indexes = indexes

    def wait(self) -> tuple[NDArray[np.signedinteger[Any]], NDArray[np.uint8]]:
        return self.symbols.ravel(), to_host(self._indexes)


def coded_step(residual: Array, indexes: Array) -> CodedStep | HostStep:
    return (HostStep if isinstance(residual, np.ndarray) else CodedStep)(residual, indexes)


def in_background(latents: Array) -> bool:
    """Whether a thread of its own codes an encoder's symbols: with a GPU; on the CPU all cores are busy."""
    return not isinstance(latents, np.ndarray) and latents.device.type == "cuda"


def to_host(indexes: Array) -> NDArray[np.uint8]:
    """Table indexes below 256 (any shape and integer type) as 1-D uint8; here a decoder's step waits for the device, once."""
    if isinstance(indexes, np.ndarray):
        return indexes.ravel().astype(np.uint8)
    import torch

    return HostCopy(indexes.flatten().to(torch.uint8)).wait().view(np.uint8)


def to_device(symbols: NDArray[np.int32], device: torch.device | None) -> Array:
    """Decoded symbols as 1-D int32 on a device, or as a numpy array for None; to a GPU the copy is queued, in 16 bits where they fit."""
    if device is None:
        return symbols
    import torch

    if device.type != "cuda":
        return torch.from_numpy(symbols).to(device)
    narrow = torch.from_numpy(symbols.astype(np.int16) if largest_magnitude(symbols) <= SHORT_LIMIT else symbols)
    return narrow.pin_memory().to(device, non_blocking=True).to(torch.int32)


def spread(values: Array, shape: tuple[int, ...]) -> Array:
    """Values broadcast to a shape, a view."""
    return np.broadcast_to(values, shape) if isinstance(values, np.ndarray) else values.expand(shape)


def table_index(sigma: Array) -> Array:
    """Table indexes from a symbol port's argument: σ, or indexes already, as the walk in integers computes them itself."""
    if isinstance(sigma, np.ndarray) or not sigma.is_floating_point():
        return sigma
    from hpcm_codec.entropy.distributions import sigma_index

    return sigma_index(sigma)
