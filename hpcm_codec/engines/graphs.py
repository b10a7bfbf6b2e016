"""CUDA graph replay of the walk over a tile's coding steps, and its verification.

A walk launches thousands of small kernels, and launching takes longer than running them. `WalkGraphs.run` runs a walk as plain code until
a size has occurred twice, then captures it: the port ends a segment of the capture at every exchange and begins the next one. Everything
that changes between tiles (hyper-latents, quality, symbols) is copied into tensors at fixed addresses, so one capture serves every
quality. Before its results are used, a replay must equal plain code bit for bit on two tiles; these tiles get the results of plain code.
If a replay differs, or a walk cannot be captured, graphs are switched off for the codec with one warning. HPCM_CUDA_GRAPHS=0 switches
them off from the start.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hpcm_codec.entropy.handover import table_index
from hpcm_codec.errors import UsageError
from hpcm_codec.model.schedule import Lattice, Scale
from hpcm_codec.model.walk import SymbolPort

SETTING = "HPCM_CUDA_GRAPHS"
PLAIN_USES = 1  # of a size before it is captured: most programs code one picture
CHECKED_USES = 2  # of a captured size, usually with different tiles, before its results are used
KEPT_SIZES = 8  # a large picture has tiles of at most four

Walk = Callable[
    ..., Tensor
]  # (port, *inputs) → decoded latents, a new tensor; launches the same for all inputs of one key


class Segment(Protocol):
    """The device's work between two exchanges of symbols."""

    def begin(self) -> None:
        """Begin the capture: from here on, launches are captured and not run."""

    def end(self) -> None:
        """End the capture."""

    def replay(self) -> None:
        """Run what was captured, on the same memory."""


class GraphBackend(Protocol):
    """Captures segments."""

    def capturing(self) -> AbstractContextManager[Callable[[], Segment]]:
        """A walk's capture: returns a function that makes segments, which share their memory and are replayed in the order of capture."""


class _CudaSegment:
    def __init__(self, pool: Any) -> None:
        self._graph, self._pool = torch.cuda.CUDAGraph(), pool

    def begin(self) -> None:
        # thread_local: other threads go on allocating and waiting for events
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end(self) -> None:
        self._graph.capture_end()

    def replay(self) -> None:
        self._graph.replay()


class CudaGraphs:
    """torch.cuda.CUDAGraph as a backend."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @contextmanager
    def capturing(self) -> Iterator[Callable[[], Segment]]:
        torch.cuda.synchronize(self._device)
        stream, pool = torch.cuda.Stream(self._device), torch.cuda.graph_pool_handle()
        with torch.cuda.stream(stream):
            yield lambda: _CudaSegment(pool)
        torch.cuda.synchronize(self._device)


@dataclass(frozen=True)
class _Cut:
    """An exchange: the port's arguments, in tensors that every replay fills, and the tensor for its result."""

    began: tuple[tuple[Scale, int], ...]  # the calls of `begin` before it
    step: Lattice
    indexes: Tensor
    mean: Tensor
    answer: Tensor


class _CuttingPort:
    """Ends a segment and begins the next at every exchange; returns a tensor that is filled later."""

    def __init__(self, new_segment: Callable[[], Segment]) -> None:
        self.segments: list[Segment] = []
        self.cuts: list[_Cut] = []
        self._new_segment = new_segment
        self._began: list[tuple[Scale, int]] = []

    def start(self) -> None:
        self.segments.append(self._new_segment())
        self.segments[-1].begin()

    def finish(self) -> None:
        self.segments[-1].end()

    def begin(self, scale: Scale, number: int) -> None:
        self._began.append((scale, number))

    def exchange(self, step: Lattice, sigma: Tensor, mean: Tensor) -> Tensor:
        indexes = table_index(sigma)
        self.finish()
        answer = torch.zeros_like(indexes, dtype=torch.int32)
        self.cuts.append(_Cut(tuple(self._began), step, indexes, mean, answer))
        self._began.clear()
        self.start()
        return answer


class CapturedWalk:
    """A walk's segments with their input and output tensors; raises the errors of capturing.

    inputs: example arguments of the walk.
    """

    def __init__(self, backend: GraphBackend, walk: Walk, inputs: Sequence[Tensor]) -> None:
        self.checks_left = CHECKED_USES
        self._inputs = [given.clone() for given in inputs]
        with backend.capturing() as new_segment:
            port = _CuttingPort(new_segment)
            port.start()
            try:
                self._decoded = walk(port, *self._inputs)
            except BaseException:
                with suppress(RuntimeError):  # torch's; the first error is the one that counts
                    port.finish()
                raise
            port.finish()
        self._segments, self._cuts = port.segments, port.cuts

    def replay(self, port: SymbolPort, inputs: Sequence[Tensor]) -> Tensor:
        """The same as the walk. Only the port may wait for the device."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        for segment, cut in zip(self._segments, self._cuts, strict=False):
            segment.replay()
            for scale, number in cut.began:
                port.begin(scale, number)
            cut.answer.copy_(port.exchange(cut.step, cut.indexes, cut.mean))
        self._segments[-1].replay()
        return self._decoded.clone()


class _RecordingPort:
    """Passes all calls to another port and records arguments and results."""

    def __init__(self, port: SymbolPort) -> None:
        self.exchanges: list[tuple[Tensor, Tensor, Tensor]] = []
        self._port = port

    def begin(self, scale: Scale, number: int) -> None:
        self._port.begin(scale, number)

    def exchange(self, step: Lattice, sigma: Tensor, mean: Tensor) -> Tensor:
        indexes = table_index(sigma)
        answer = self._port.exchange(step, indexes, mean)
        self.exchanges.append((indexes, mean, answer))
        return answer


class _ComparingPort:
    """Returns recorded results; `equal` is whether the arguments were the same."""

    def __init__(self, exchanges: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        self.equal = True
        self._exchanges = iter(exchanges)

    def begin(self, scale: Scale, number: int) -> None:
        pass

    def exchange(self, step: Lattice, sigma: Tensor, mean: Tensor) -> Tensor:
        expected_indexes, expected_mean, answer = next(self._exchanges)
        self.equal = self.equal and torch.equal(sigma, expected_indexes) and torch.equal(mean, expected_mean)
        return answer


@dataclass
class _Size:
    uses: int = 0
    captured: CapturedWalk | None = None


class WalkGraphs:
    """The captured walks of one codec, least recently used sizes dropped."""

    def __init__(self, backend: GraphBackend) -> None:
        self.enabled = True
        self._backend = backend
        self._sizes: OrderedDict[Hashable, _Size] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, key: Hashable, walk: Walk, port: SymbolPort, *inputs: Tensor) -> Tensor:
        """walk(port, *inputs), from graphs once they are verified. key: what `walk` and its launches depend on."""
        # the captured memory belongs to one caller at a time
        if not self.enabled or not self._lock.acquire(blocking=False):
            return walk(port, *inputs)
        try:
            size = self._sizes.setdefault(key, _Size())
            self._sizes.move_to_end(key)
            size.uses += 1
            if size.captured is not None and not size.captured.checks_left:
                return size.captured.replay(port, inputs)
            if size.uses <= PLAIN_USES:
                return walk(port, *inputs)
            recorded = _RecordingPort(port)
            decoded = walk(recorded, *inputs)
            self._check(size, walk, inputs, recorded.exchanges, decoded)
            return decoded
        finally:
            while len(self._sizes) > KEPT_SIZES:
                self._sizes.popitem(last=False)
            self._lock.release()

    def _check(
        self,
        size: _Size,
        walk: Walk,
        inputs: Sequence[Tensor],
        exchanges: Sequence[tuple[Tensor, Tensor, Tensor]],
        decoded: Tensor,
    ) -> None:
        """Capture a size where that is still to be done, and replay what plain code has just done."""
        try:
            if size.captured is None:
                size.captured = CapturedWalk(self._backend, walk, inputs)
            port = _ComparingPort(exchanges)
            replayed = size.captured.replay(port, inputs)
            problem = "" if port.equal and torch.equal(replayed, decoded) else "they gave other numbers than plain code"
        except Exception as error:  # after any error, plain code is used
            problem = f"{type(error).__name__}: {error}"
        if not problem:
            assert size.captured is not None
            size.captured.checks_left -= 1
            return
        self.enabled = False
        self._sizes.clear()
        warnings.warn(
            f"CUDA graphs are switched off for this codec ({problem}); it works without them, only slower. "
            f"{SETTING}=0 keeps them off.",
            RuntimeWarning,
            stacklevel=3,
        )


def graphs_for(device: torch.device) -> WalkGraphs | None:
    """Graphs for a codec on that device; None without CUDA, or if HPCM_CUDA_GRAPHS is 0. Raises UsageError for other values."""
    setting = os.environ.get(SETTING, "1")
    if setting not in ("0", "1"):
        raise UsageError(f"{SETTING} is {setting!r}", advice="set it to 0 or 1")
    return WalkGraphs(CudaGraphs(device)) if device.type == "cuda" and setting == "1" else None
