"""The encoder's and the decoder's ends of the entropy coder (`model.walk.SymbolPort`), for arrays and tensors.

Encoding and decoding both make one pass over the steps; the third port, the estimator's, is `model.hpcm.EstimatorPort`. Ports convert
scales to table indexes and residuals to symbols, and compute the symbol check over all symbols of the tile. The decoder waits for a GPU
once in a step, for the table indexes. The encoder never waits: a thread of its own receives the symbols.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.entropy.handover import (
    CodedStep,
    HostStep,
    coded_step,
    in_background,
    spread,
    table_index,
    to_device,
    to_host,
)
from hpcm_codec.entropy.rans_decoder import WORD_BYTES, RansDecoder
from hpcm_codec.entropy.rans_encoder import CoderTables, RansEncoder
from hpcm_codec.entropy.symbol_check import SYMBOL_CHECK_START, update_symbol_check
from hpcm_codec.model import schedule
from hpcm_codec.model.schedule import Lattice, Scale
from hpcm_codec.observing import UNOBSERVED, Observer, step_name

if TYPE_CHECKING:
    import torch

Array = Any  # a numpy array or a torch tensor; all those of one port are of one kind


class EncoderPort:
    """Quantises the true latents of one tile and codes them, one stream per scale.

    latents: 1×M×h×w, in quantisation steps. A latent that cannot be coded raises HpcmError, at the latest in `streams`.
    """

    def __init__(self, latents: Array, tables: CoderTables, observer: Observer = UNOBSERVED) -> None:
        with observer.stage("symbols"):
            self._planes = schedule.split(latents)
        self._observer = observer
        self._tables = tables
        self._encoders: dict[str, RansEncoder] = {}
        self._scale_name = "hyper"
        apart = in_background(latents) and not observer.watches
        self._thread = ThreadPoolExecutor(1, "rANS coder") if apart else None
        self._pending: list[Future[None]] = []
        self.symbol_check = SYMBOL_CHECK_START

    def code_hyper(self, hyper: Array, indexes: Array, mean: Array) -> Array:
        """Code the hyper-latents 1×N×h×w under table indexes and means (1×N×1×1); returns their symbols, int32."""
        with self._observer.stage("symbols"):
            return self._coded_symbols(hyper - mean, spread(indexes, hyper.shape))

    def begin(self, scale: Scale, number: int) -> None:
        self._observer.switch(step_name(scale.name, number))
        self._scale_name = scale.name

    def exchange(self, step: Lattice, sigma: Array, mean: Array) -> Array:
        indexes = table_index(sigma)
        with self._observer.stage("symbols"):
            residual = step.take(self._planes[self._scale_name]) - mean.reshape(1, -1)
            return self._coded_symbols(residual, indexes).reshape(mean.shape)

    def _coded_symbols(self, residual: Array, indexes: Array) -> Array:
        step = coded_step(residual, indexes)
        if self._thread is None:
            self._code_symbols(self._scale_name, step)
        else:
            self._pending.append(self._thread.submit(self._code_symbols, self._scale_name, step))
        return step.symbols

    def _code_symbols(self, scale_name: str, step: CodedStep | HostStep) -> None:
        symbols, indexes = step.wait()
        with self._observer.stage("rANS coding"):
            if scale_name not in self._encoders:
                self._encoders[scale_name] = RansEncoder(self._tables)
            self._encoders[scale_name].encode(symbols, indexes)
        self.symbol_check = update_symbol_check(self.symbol_check, symbols)

    def streams(self) -> dict[str, bytes]:
        """The finished streams: hyper, s1, s2, s3. After this call `symbol_check` covers all symbols."""
        for coded in self._pending:
            coded.result()
        if self._thread is not None:
            self._thread.shutdown()
        with self._observer.stage("rANS coding"):
            return {name: encoder.finish() for name, encoder in self._encoders.items()}


class DecoderPort:
    """Reads one tile's symbols from its four streams (hyper, s1, s2, s3).

    From the first stream that is None on, every latent takes its predicted mean, which gives a coarser picture.
    `complete` is True if no stream was missing; only then can the symbol check be tested.

    device: of indexes and symbols; None: they are numpy arrays.
    begun:  the beginning of the first stream that is None, which is decoded as far as it goes; or None.
    record: called with every run of symbols (int32) that is decoded, in coding order.
    """

    def __init__(
        self,
        streams: dict[str, bytes | None],
        tables: CoderTables,
        device: torch.device | None,
        record: Callable[[NDArray[np.int32]], None] | None = None,
        begun: bytes | None = None,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._observer = observer
        self._streams = streams
        self._begun = begun
        self._stream: bytes | None = None
        self.complete = True
        self._tables = tables
        self._device = device
        self._record = record
        self._decoder: RansDecoder | None = None
        self.symbol_check = SYMBOL_CHECK_START

    def code_hyper(self, shape: tuple[int, ...], indexes: Array) -> Array:
        """The symbols (int32) of hyper-latents of that shape 1×N×h×w, under table indexes (1×N×1×1)."""
        with self._observer.stage("symbols"):
            self._open("hyper")
            return self._read(spread(indexes, shape))

    def begin(self, scale: Scale, number: int) -> None:
        self._observer.switch(step_name(scale.name, number))
        if number == 1:
            self._open(scale.name)

    def exchange(self, step: Lattice, sigma: Array, mean: Array) -> Array:
        indexes = table_index(sigma)
        with self._observer.stage("symbols"):
            return self._read(indexes)

    def _open(self, name: str) -> None:
        self._decoder = None
        self._stream = self._streams[name]
        if self.complete and self._stream is None and self._begun is not None:
            self._stream = self._begun[: len(self._begun) // WORD_BYTES * WORD_BYTES]
        elif not self.complete:
            # A finer scale depends on the coarser ones: without them it cannot be decoded.
            self._stream = None
        self.complete = self.complete and self._streams[name] is not None

    def _read(self, indexes: Array) -> Array:
        if self._stream is None:
            nothing = np.zeros(math.prod(indexes.shape), np.int32)
            return to_device(nothing, self._device).reshape(indexes.shape)
        on_host = to_host(indexes)
        with self._observer.stage("rANS coding"):
            if self._decoder is None:
                self._decoder = RansDecoder(self._tables, self._stream)
            symbols = self._decoder.decode(on_host)
        self.symbol_check = update_symbol_check(self.symbol_check, symbols)
        if self._record is not None:
            self._record(symbols)
        return to_device(symbols, self._device).reshape(indexes.shape)
