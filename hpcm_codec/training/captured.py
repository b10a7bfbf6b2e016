"""A training step's forward and backward pass as a CUDA graph: its thousands of small kernels are captured once and replayed.

Launching them one by one takes longer than running them. A capture is used only after its loss has equalled plain code's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hpcm_codec.errors import UnsupportedError
from hpcm_codec.training.losses import RateDistortion
from hpcm_codec.training.samples import Batch

WARM_UPS = 3  # plain steps before a capture: libraries choose their kernels, caches fill
TOLERANCE = 1e-2  # relative, between two losses in bfloat16

Step = Callable[[Batch], RateDistortion]  # forward and backward; gradients replace those of before


class CapturedStep:
    """Called like `step`, on a CUDA device, with batches of one shape for most of the time: each new shape is captured anew.

    The result and the gradients lie in memory that the next call overwrites.
    Raises UnsupportedError where the step cannot be captured, or the capture gives another loss than plain code.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._inputs: Batch | None = None

    def __call__(self, batch: Batch) -> RateDistortion:
        if self._inputs is None or self._inputs.pixels.shape != batch.pixels.shape:
            try:
                self._capture(batch)
            except UnsupportedError:  # torch.compile's, with its own advice
                raise
            except Exception as error:
                reason = f"the step cannot be captured as a CUDA graph ({type(error).__name__}: {str(error)[:300]})"
                raise UnsupportedError(reason, advice="leave --cuda-graph out") from error
        assert self._inputs is not None
        for own, new in zip(self._inputs.tensors(), batch.tensors(), strict=True):
            own.copy_(new)
        self._graph.replay()
        return self._outcome

    def _capture(self, batch: Batch) -> None:
        inputs = batch.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            plain = [float(self._step(inputs).loss.detach()) for _ in range(WARM_UPS)][-1]
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that copies the next samples to the device may go on
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            outcome = self._step(inputs)
        self._outcome = outcome._replace(loss=outcome.loss.detach())
        self._graph.replay()
        replayed = float(self._outcome.loss)
        if not abs(replayed - plain) <= TOLERANCE * abs(plain):
            raise RuntimeError(f"its loss is {replayed:g}, that of plain code {plain:g}")
        self._inputs = inputs
