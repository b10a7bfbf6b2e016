"""The encoder's and the decoder's ends of the entropy coder, as `ContextModel.code_latents` sees them.

Both cost one pass over the steps; the third port, the estimator's, is `model.hpcm.EstimatorPort`. They turn scales
into table indexes and residuals into symbols, and keep the tile's symbol check over everything they code. Within a step they wait for a
GPU at one place: where the decoder needs the table indexes. The encoder never does: a thread of its own takes the symbols as they come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcm_codec.bitstream.container import SYMBOL_CHECK_START, update_symbol_check
from hpcm_codec.entropy.distributions import scale_index
from hpcm_codec.entropy.handover import CodedStep, to_device, to_host
from hpcm_codec.entropy.range_coder import CoderTables, RangeEncoder
from hpcm_codec.entropy.range_decoder import WORD_BYTES, RangeDecoder
from hpcm_codec.model import schedule
from hpcm_codec.model.schedule import Lattice, Scale


class CodingPort(ABC):
    """A port that exchanges table indexes for symbols: what the walk in integers asks for; the one in floating point is brought to it."""

    @abstractmethod
    def begin(self, scale: Scale) -> None:
        """Called before the first step of each scale, coarse to fine."""

    @abstractmethod
    def exchange_levels(self, step: Lattice, levels: Tensor, mean: Tensor) -> Tensor:
        """Code a step's latents and return their symbols, int32, shaped as `levels`.

        levels: int32 n or 1×n, table indexes; mean: as many floats, in quantisation steps, which only an encoder needs.
        """

    def exchange(self, step: Lattice, scale: Tensor, mean: Tensor) -> Tensor:
        """As `model.context.SymbolPort` says."""
        return self.exchange_levels(step, scale_index(scale), mean).to(mean.dtype) + mean


def in_background(device: torch.device) -> bool:
    """Whether an encoder's symbols are range-coded in a thread: beside a GPU; on the CPU the cores have enough to do."""
    return device.type == "cuda"


class EncoderPort(CodingPort):
    """Quantises the true latents of one tile and codes them, one stream per scale.

    latents: 1×M×h×w, in quantisation steps. A latent that cannot be coded raises HpcmError, at the latest in `streams`.
    """

    def __init__(self, latents: Tensor, tables: CoderTables) -> None:
        self._planes = schedule.split(latents)
        self._tables = tables
        self._encoders: dict[str, RangeEncoder] = {}
        self._scale_name = "hyper"
        self._thread = ThreadPoolExecutor(1, "range coder") if in_background(latents.device) else None
        self._coded: list[Future[None]] = []
        self.symbol_check = SYMBOL_CHECK_START

    def code_hyper(self, hyper: Tensor, levels: Tensor, mean: Tensor) -> Tensor:
        """Code the hyper-latents 1×N×h×w under table indexes and means (1×N×1×1); returns their symbols, int32."""
        return self._code(hyper - mean, levels.expand(hyper.shape))

    def begin(self, scale: Scale) -> None:
        self._scale_name = scale.name

    def exchange_levels(self, step: Lattice, levels: Tensor, mean: Tensor) -> Tensor:
        residual = step.take(self._planes[self._scale_name]) - mean.reshape(1, -1)
        return self._code(residual, levels).reshape(mean.shape)

    def _code(self, residual: Tensor, levels: Tensor) -> Tensor:
        step = CodedStep(residual, levels)
        if self._thread is None:
            self._range_code(self._scale_name, step)
        else:
            self._coded.append(self._thread.submit(self._range_code, self._scale_name, step))
        return step.symbols

    def _range_code(self, scale_name: str, step: CodedStep) -> None:
        symbols, levels = step.wait()
        if scale_name not in self._encoders:
            self._encoders[scale_name] = RangeEncoder(self._tables)
        self._encoders[scale_name].encode(symbols, levels)
        self.symbol_check = update_symbol_check(self.symbol_check, symbols)

    def streams(self) -> dict[str, bytes]:
        """The finished streams: hyper, s1, s2, s3. Only then `symbol_check` is of all symbols."""
        for coded in self._coded:
            coded.result()
        if self._thread is not None:
            self._thread.shutdown()
        return {name: encoder.finish() for name, encoder in self._encoders.items()}


class DecoderPort(CodingPort):
    """Reads one tile's symbols from its four streams (hyper, s1, s2, s3).

    From the first stream that is None on, every latent takes its predicted mean: a coarser picture of what has arrived.
    `complete` says whether that was never needed; only then can the symbol check be tested.

    begun:  the beginning of the first stream that is None, which is read as far as it goes; or None.
    record: given every run of symbols (int32) that is read, in coding order.
    """

    def __init__(
        self,
        streams: dict[str, bytes | None],
        tables: CoderTables,
        device: torch.device,
        record: Callable[[NDArray[np.int32]], None] | None = None,
        begun: bytes | None = None,
    ) -> None:
        self._streams = streams
        self._begun = begun
        self._stream: bytes | None = None
        self.complete = True
        self._tables = tables
        self._device = device
        self._record = record
        self._decoder: RangeDecoder | None = None
        self.symbol_check = SYMBOL_CHECK_START

    def code_hyper(self, shape: tuple[int, ...], levels: Tensor) -> Tensor:
        """The symbols (int32) of hyper-latents of that shape 1×N×h×w, under table indexes (1×N×1×1)."""
        self._open("hyper")
        return self._read(levels.expand(shape))

    def begin(self, scale: Scale) -> None:
        self._open(scale.name)

    def exchange_levels(self, step: Lattice, levels: Tensor, mean: Tensor) -> Tensor:
        return self._read(levels)

    def _open(self, name: str) -> None:
        self._decoder = None
        self._stream = self._streams[name]
        if self.complete and self._stream is None and self._begun is not None:
            self._stream = self._begun[: len(self._begun) // WORD_BYTES * WORD_BYTES]
        elif not self.complete:
            # A finer scale is coded on top of the coarser ones: without those it cannot be read.
            self._stream = None
        self.complete = self.complete and self._streams[name] is not None

    def _read(self, levels: Tensor) -> Tensor:
        if self._stream is None:
            return torch.zeros_like(levels, dtype=torch.int32)
        if self._decoder is None:
            self._decoder = RangeDecoder(self._tables, self._stream)
        symbols = self._decoder.decode(to_host(levels))
        self.symbol_check = update_symbol_check(self.symbol_check, symbols)
        if self._record is not None:
            self._record(symbols)
        return to_device(symbols, self._device).reshape(levels.shape)
