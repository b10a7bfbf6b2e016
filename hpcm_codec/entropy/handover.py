"""Symbols and table indexes on their way between a device and the rANS coder, in few bytes and, from the device, without waiting.

A coding step hands over three bytes a latent: the residual in 16 bits and the table index in 8. From a GPU they are copied into pinned
memory while it goes on; on the CPU nothing is copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcm_codec.entropy.rans_encoder import LARGEST_SYMBOL, largest_magnitude

SHORT_LIMIT = 2**15 - 1  # magnitudes from here on do not travel in 16 bits
BEYOND = 2 * LARGEST_SYMBOL  # stands for whatever cannot be coded, not-a-number too


class HostCopy:
    """A tensor on its way to the host: of a GPU's, a copy queued on the device's current stream; of the CPU's, the tensor itself."""

    def __init__(self, source: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._host = source
        if source.device.type == "cuda":
            self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._host.copy_(source, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(source.device))

    def wait(self) -> NDArray[np.generic]:
        """The elements, once they have arrived; may be called in another thread."""
        if self._arrived is not None:
            self._arrived.synchronize()
        array: NDArray[np.generic] = self._host.numpy()
        return array


class CodedStep:
    """An encoder's symbols of one step: on the device at once, on the host when they have arrived.

    residual: float, any shape, in quantisation steps; indexes: integer table indexes below 256, as many.
    """

    def __init__(self, residual: Tensor, indexes: Tensor) -> None:
        # in place: on the CPU fresh memory costs more than what is done in it
        whole = residual.round().nan_to_num_(nan=BEYOND).clamp_(-BEYOND, BEYOND)
        self.symbols = whole.to(torch.int32)  # int32, of the residual's shape
        short = whole.clamp_(-SHORT_LIMIT, SHORT_LIMIT).to(torch.int16).flatten()
        self._count = short.numel()
        self._packed = HostCopy(torch.cat((short.view(torch.uint8), indexes.flatten().to(torch.uint8))))

    def wait(self) -> tuple[NDArray[np.signedinteger[Any]], NDArray[np.uint8]]:
        """Symbols (int16, or int32 where one does not fit that) and table indexes, both 1-D. A symbol that cannot be coded is BEYOND."""
        packed = self._packed.wait()
        short, indexes = packed[: 2 * self._count].view(np.int16), packed[2 * self._count :].view(np.uint8)
        if largest_magnitude(short) >= SHORT_LIMIT:
            return self.symbols.flatten().cpu().numpy(), indexes  # rare, so it may wait
        return short, indexes


def to_host(indexes: Tensor) -> NDArray[np.uint8]:
    """Table indexes below 256 (any shape and integer type) as 1-D uint8: the one wait of a decoder's step."""
    return HostCopy(indexes.flatten().to(torch.uint8)).wait().view(np.uint8)


def to_device(symbols: NDArray[np.int32], device: torch.device) -> Tensor:
    """Decoded symbols as 1-D int32 on a device; for a GPU the copy is queued, in 16 bits where they fit."""
    if device.type != "cuda":
        return torch.from_numpy(symbols).to(device)
    narrow = torch.from_numpy(symbols.astype(np.int16) if largest_magnitude(symbols) <= SHORT_LIMIT else symbols)
    return narrow.pin_memory().to(device, non_blocking=True).to(torch.int32)
