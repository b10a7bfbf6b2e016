"""From the loss to new weights: backward pass, gradient norm, optimiser and average, in one of three ways behind one interface.

`TorchUpdate` does it with DDP and torch's optimisers, on every device; `CapturedUpdate` is the same as a CUDA graph. `FusedUpdate` is
for AdamW on the CPU and several times faster: one pass over memory (`hpcm_codec.ops.update`) and, with several processes on a
machine, one copy of the weights and of all that belongs to them, in shared memory. Each process then updates its share, and all see
all of the result.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hpcm_codec.ops import fused, update
from hpcm_codec.training.averaging import Averaged
from hpcm_codec.training.optimisers import Optimiser
from hpcm_codec.training.processes import Processes
from hpcm_codec.training.shared import HEAD, on_one_machine, shared_memory

PAGE = 1024  # weights in a page of memory
LINE = 16  # and in a cache line
WARM_UPS = 4  # plain updates before one is captured: SOAP's first one only starts its state


class Update(Protocol):
    """What happens to a model after the forward pass. All processes call the same methods in the same order."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call in place of `model`."""

    def backward(self, loss: Tensor) -> None:
        """Gradients of the mean loss of all processes, in place of those of the step before."""

    def norm(self) -> float:
        """Norm of those gradients, the same number in all processes; once after each `backward`."""

    def apply(self, rate: float, scale: float) -> None:
        """Change weights and averages by the gradients times `scale`; rate: learning rate of a group with factor 1."""

    def skip(self) -> None:
        """Leave weights and averages as they are."""


def updating(model: nn.Module, optimiser: Optimiser, average: Averaged, processes: Processes) -> Update:
    """The fastest update that this run can have; all processes call it together.

    Weights, averages and AdamW's moments may lie in other memory afterwards, with the same values and strides. To load others
    later, copy into the tensors (as `load_state_dict` of a model does), or call this again.
    """
    fits = optimiser.adamw_alone is not None and all(
        p.device.type == "cpu" and p.dtype == torch.float32 and p.requires_grad and _is_dense(p)
        for p in model.parameters()
    )
    if fits and processes.world == 1 and update.compiled():
        return FusedUpdate(model, optimiser, average, processes)
    if fits and processes.world > 1 and on_one_machine(processes):
        try:
            memory = shared_memory(processes, FusedUpdate.shared_bytes(model, processes.world))
            return FusedUpdate(model, optimiser, average, processes, memory)
        except OSError as error:
            if processes.rank == 0:
                text = f"no memory that all processes share ({error}): they send their gradients instead, slower"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
    if optimiser.can_be_captured and processes.device.type == "cuda" and processes.world == 1:
        return CapturedUpdate(model, optimiser, average, processes)
    return TorchUpdate(model, optimiser, average, processes)


def clipping(norm: float, largest: float) -> float:
    """The factor that brings a gradient norm down to `largest`, as torch's clip_grad_norm_ computes it."""
    return min(1.0, largest / (norm + 1e-6))


class TorchUpdate:
    """DDP, torch's optimisers, every device."""

    def __init__(self, model: nn.Module, optimiser: Optimiser, average: Averaged, processes: Processes) -> None:
        self._optimiser, self._average, self._processes = optimiser, average, processes
        self._parameters = list(model.parameters())

    def wrap(self, model: nn.Module) -> nn.Module:
        return self._processes.wrap(model)

    def backward(self, loss: Tensor) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        self._processes.backward(loss)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]

    def norm(self) -> float:
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self._gradients()))))

    def apply(self, rate: float, scale: float) -> None:
        if scale != 1:
            torch._foreach_mul_(self._gradients(), scale)
        self._optimiser.step(rate)
        self._average.update(self._parameters)

    def skip(self) -> None:
        pass


class CapturedUpdate(TorchUpdate):
    """`TorchUpdate` of one process on a CUDA device, replayed as a graph as soon as all gradients lie where they lay before."""

    def __init__(self, model: nn.Module, optimiser: Optimiser, average: Averaged, processes: Processes) -> None:
        super().__init__(model, optimiser, average, processes)
        self._scale, self._part = torch.zeros(2, device=processes.device)
        self._places: tuple[int, ...] = ()
        self._plain_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def apply(self, rate: float, scale: float) -> None:
        self._scale.fill_(scale)
        self._part.fill_(self._average.count())
        self._optimiser.prepare(rate)
        places = tuple(g.data_ptr() for g in self._gradients())
        if places != self._places:
            self._places, self._plain_steps, self._graph = places, 0, None
        if self._graph is None and self._plain_steps >= WARM_UPS:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._change()
        if self._graph is None:
            self._change()
            self._plain_steps += 1
        else:
            self._graph.replay()
        self._optimiser.refresh_bases()

    @torch.no_grad()
    def _change(self) -> None:
        torch._foreach_mul_(self._gradients(), self._scale)
        self._optimiser.change()
        averages = list(self._average.values.values())
        differences = torch._foreach_sub([p.float() for p in self._parameters], averages)
        torch._foreach_mul_(differences, self._part)
        torch._foreach_add_(averages, differences)


class FusedUpdate:
    """AdamW and averages on the CPU in one pass, shared out among the processes of a machine.

    A step of several processes: each copies its gradients where all see them; all wait; each adds up the squares of its
    share; all wait; each updates its share; all wait. A parameter to which no process has a gradient is left as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: Optimiser,
        average: Averaged,
        processes: Processes,
        memory: mmap.mmap | None = None,
    ) -> None:
        """memory: `shared_bytes` that all processes see; None for one process alone."""
        assert optimiser.adamw_alone is not None
        self._optimiser, self._adamw, self._average = optimiser, optimiser.adamw_alone, average
        self._processes, self._world = processes, processes.world
        self._parameters = list(model.parameters())
        starts, total = _layout(self._parameters)
        self._first_fills = processes.rank == 0
        arrays = _Arrays(memory)
        parameters, averages, means, squares = (arrays.take(total) for _ in range(4))
        self._place(model, parameters, averages, means, squares, starts)

        # Each share is a run of whole pages; a parameter may belong to several.
        share = PAGE * -(-total // (PAGE * self._world))
        first = share * processes.rank
        spans = [
            (index, max(start, first), min(start + p.numel(), first + share))
            for index, (start, p) in enumerate(zip(starts, self._parameters, strict=True))
        ]
        spans = [span for span in spans if span[1] < span[2]]
        self._owned = [index for index, _, _ in spans]

        def pieces(array: Tensor) -> list[Tensor]:
            return [array[begin:end] for _, begin, end in spans]

        self._weights = update.Weights(*map(pieces, (parameters, averages, means, squares)))
        buffers = [arrays.take(total) for _ in range(self._world)]
        self._all_gradients = [pieces(buffer) for buffer in buffers]
        own = buffers[processes.rank]
        self._own_gradients = [_view(own, p, s) for p, s in zip(self._parameters, starts, strict=True)]
        self._matrices = {
            id(p): _matrix(g) for p, g in zip(self._parameters, self._own_gradients, strict=True) if _is_matrix(g)
        }
        self._sums = arrays.take(self._world, torch.float64)
        self._received = arrays.take(self._world * len(starts), torch.bool).view(self._world, len(starts))
        self._given = np.ones(len(starts), dtype=bool)
        processes.wait()  # until process 0 has filled what all see

    @staticmethod
    def shared_bytes(model: nn.Module, world: int) -> int:
        """How much shared memory so many processes need."""
        parameters = list(model.parameters())
        _, total = _layout(parameters)
        return 4 * total * (4 + world) + 8 * world + world * len(parameters)

    def _place(
        self,
        model: nn.Module,
        parameters: Tensor,
        averages: Tensor,
        means: Tensor,
        squares: Tensor,
        starts: Sequence[int],
    ) -> None:
        """Make the model's, the average's and the optimiser's tensors views of the four arrays; process 0 fills these."""
        names = [name for name, _ in model.named_parameters()]
        self._steps = torch.zeros(len(starts))
        self._factors, self._decays = np.ones(len(starts)), np.zeros(len(starts))
        groups = {id(p): group for group in self._adamw.param_groups for p in group["params"]}
        for index, (name, parameter, start) in enumerate(zip(names, self._parameters, starts, strict=True)):
            state = self._adamw.state[parameter]
            held = parameter.data, self._average.values[name], state.get("exp_avg"), state.get("exp_avg_sq")
            new = [_view(array, parameter, start) for array in (parameters, averages, means, squares)]
            if self._first_fills:
                for value, view in zip(held, new, strict=True):
                    if value is not None:
                        view.copy_(value)
            self._steps[index] = float(state.get("step", 0))
            parameter.data, self._average.values[name] = new[0], new[1]
            self._adamw.state[parameter] = {"step": self._steps[index], "exp_avg": new[2], "exp_avg_sq": new[3]}
            self._factors[index] = groups[id(parameter)]["factor"]
            self._decays[index] = groups[id(parameter)]["weight_decay"]

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def backward(self, loss: Tensor) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        with fused.gradients_into(self._matrices) as written:
            loss.backward()
        there = [id(p) in written for p in self._parameters]
        copied: tuple[list[Tensor], list[Tensor]] = [], []
        for parameter, own, already in zip(self._parameters, self._own_gradients, there, strict=True):
            if parameter.grad is None:
                if not already:
                    own.zero_()
            elif already:
                own.add_(parameter.grad)
            else:
                copied[0].append(own)
                copied[1].append(parameter.grad)
        torch._foreach_copy_(*copied)
        self._given = np.array([p.grad is not None or done for p, done in zip(self._parameters, there, strict=True)])
        self._received[self._processes.rank] = torch.from_numpy(self._given)
        self._processes.wait()
        self._given = self._received.any(dim=0).numpy()

    def _gradients(self, owned: Sequence[int]) -> list[list[Tensor]]:
        """For each process, its gradients of those of the owned pieces."""
        return [[pieces[n] for n in owned] for pieces in self._all_gradients]

    def _changing(self) -> list[int]:
        """Those of the owned pieces that have a gradient."""
        return [n for n, index in enumerate(self._owned) if self._given[index]]

    def norm(self) -> float:
        squares = update.squared_norm(self._gradients(self._changing()))
        self._sums[self._processes.rank] = squares
        self._processes.wait()
        return math.sqrt(math.fsum(self._sums.tolist())) / self._world

    def apply(self, rate: float, scale: float) -> None:
        self._optimiser.set_rate(rate)
        changing = self._changing()
        group = self._adamw.param_groups[0]
        part = self._average.count()
        step = update.AdamW(scale / self._world, part, group["betas"], group["eps"])
        weights = self._weights
        if len(changing) < len(self._owned):
            for n in set(range(len(self._owned))) - set(changing):
                weights.averages[n].lerp_(weights.parameters[n], part)
            weights = weights.some(changing)
        self._steps[torch.from_numpy(self._given)] += 1
        indexes = np.array([self._owned[n] for n in changing], dtype=np.int64)
        steps = self._steps.numpy()[indexes].astype(np.float64)
        rates = update.Rates(rate * self._factors[indexes], self._decays[indexes], steps)
        update.adamw(weights, self._gradients(changing), rates, step)
        self._processes.wait()

    def skip(self) -> None:
        pass


class _Arrays:
    """Arrays of zeros, one behind the other in shared memory or each in memory of its own."""

    def __init__(self, memory: mmap.mmap | None) -> None:
        self._memory, self._at = memory, HEAD

    def take(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if self._memory is None:
            return torch.zeros(count, dtype=dtype)
        array = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self._at)
        self._at += count * dtype.itemsize
        return array


def _layout(parameters: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each parameter begins in a flat array, and that array's length."""
    starts, total = [], 0
    for parameter in parameters:
        starts.append(total)
        total += LINE * -(-parameter.numel() // LINE)
    return starts, total


def _view(array: Tensor, parameter: Tensor, start: int) -> Tensor:
    """The parameter's part of a flat array, with the parameter's own strides."""
    return torch.as_strided(array, parameter.shape, parameter.stride(), start)


def _is_dense(x: Tensor) -> bool:
    """Whether its numbers fill a run of memory, in whatever order."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.numel() > 0 and last + 1 == x.numel()


def _is_matrix(x: Tensor) -> bool:
    """Whether it is the weight of a linear layer or 1×1 convolution, its rows one behind the other."""
    return x.ndim >= 2 and all(n == 1 for n in x.shape[2:]) and x.stride()[:2] == (x.shape[1], 1)


def _matrix(x: Tensor) -> Tensor:
    return torch.as_strided(x, x.shape[:2], x.stride()[:2])
