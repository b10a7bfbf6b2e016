"""Samples drawn ahead of their step by other processes, so that a fast device does not wait for them.

One core draws some 900 crops of 256×256 pixels with their noise in a second, 300 where pictures are shrunk first (EPYC, Zen 4); a GPU takes
more. What a step trains on is a function of seed, step and number (`samples`), so it does not matter who draws it or when: a run gives
the same weights with and without, and there is nothing to save or to resume.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import torch
from torch import multiprocessing

from hpcm_codec.errors import HpcmError
from hpcm_codec.system.workers import prepare_worker
from hpcm_codec.training.samples import Batch
from hpcm_codec.training.settings import CropPhase

Draw = Callable[[CropPhase, int], Batch]
AHEAD = 2  # batches being drawn or ready, besides one for each process


class Prefetcher:
    """What `draw` gives for a phase and a step, for steps that are asked for in order.

    draw:      a function that can be pickled; called here where `processes` is 0, else in as many others, each with one thread.
    The processes start with the first `take`. If one of them ends, samples are drawn here from then on, with a warning.
    """

    def __init__(self, draw: Draw, processes: int) -> None:
        self._draw, self._processes = draw, processes
        self._pool: ProcessPoolExecutor | None = None
        self._phase: CropPhase | None = None
        self._next = 0  # the step that is submitted next
        self._ahead: deque[tuple[int, Future[Batch]]] = deque()

    def take(self, phase: CropPhase, step: int) -> Batch:
        """The samples of a step; those of the steps after it are drawn meanwhile, assuming that the phase stays the same."""
        if self._processes == 0:
            return self._draw(phase, step)
        try:
            return self._taken(phase, step)
        except HpcmError:
            raise
        except (
            Exception
        ) as error:  # a process has ended, or shared memory is full; what is wrong with the draw itself is raised here
            warnings.warn(f"the training process draws its samples itself from now on ({error})", stacklevel=2)
            self.close()
            self._processes = 0
            return self._draw(phase, step)

    def close(self) -> None:
        """End the processes; `take` would start others."""
        self._forget()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _taken(self, phase: CropPhase, step: int) -> Batch:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork would share torch's threads and the GPU
            self._pool = ProcessPoolExecutor(self._processes, context, _prepare, (self._draw, self._processes))
        if phase != self._phase or not self._ahead or self._ahead[0][0] != step:
            self._forget()
            self._phase, self._next = phase, step
        while len(self._ahead) < self._processes + AHEAD:
            self._ahead.append((self._next, self._pool.submit(_drawn, phase, self._next)))
            self._next += 1
        return self._ahead.popleft()[1].result()

    def _forget(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()


class OnDevice:
    """The samples of a prefetcher on a device; those of the next step are copied there by a thread while this step is computed.

    On a CUDA device the copies have a stream of their own. `ahead` False copies when asked: the default on the CPU.
    """

    def __init__(self, samples: Prefetcher, device: torch.device, ahead: bool | None = None) -> None:
        self._samples, self._device = samples, device
        self._ahead = device.type != "cpu" if ahead is None else ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1)
        self._coming: tuple[CropPhase, int, Future[Batch]] | None = None

    def take(self, phase: CropPhase, step: int) -> Batch:
        """The samples of a step, on the device."""
        if not self._ahead:
            return self._copied(phase, step)
        if self._coming is None or self._coming[:2] != (phase, step):
            self._coming = (phase, step, self._thread.submit(self._copied, phase, step))
        batch = self._coming[2].result()
        self._coming = (phase, step + 1, self._thread.submit(self._copied, phase, step + 1))
        if self._stream is not None:
            for (
                tensor
            ) in batch.tensors():  # its memory may be given to the next copy only when this step is done with it
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return batch

    def close(self) -> None:
        """End the thread and the prefetcher's processes."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._samples.close()

    def _copied(self, phase: CropPhase, step: int) -> Batch:
        batch = self._samples.take(phase, step)
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device)
        self._stream.synchronize()
        return copied


_draw_here: Draw | None = None  # in a worker


def _prepare(draw: Draw, processes: int) -> None:
    global _draw_here
    prepare_worker(1, processes)
    _draw_here = draw


def _drawn(phase: CropPhase, step: int) -> Batch:
    assert _draw_here is not None
    return _draw_here(phase, step)
