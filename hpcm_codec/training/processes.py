"""The processes that train together: one, or several through Hugging Face Accelerate.

`Processes` is what the loop needs from them, and does it for one process alone; `AcceleratedProcesses` does it for those that
torchrun or `accelerate launch` started. Accelerate is imported only for the latter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpcm_codec.errors import UnsupportedError

INSTALL = "pip install 'hpcm-codec[train]'"


class Processes:
    """One process alone."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.rank, self.world = device, 0, 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call, so that gradients become means over all processes."""
        return model

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return values

    def of_first(self, values: Sequence[float]) -> list[float]:
        """The numbers that process 0 holds, in every process."""
        return list(values)

    def wait(self) -> None:
        """Wait until all processes have called this."""


class AcceleratedProcesses(Processes):
    """Several processes, or machines; raises UnsupportedError where accelerate is not installed."""

    def __init__(self, device: torch.device) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs, broadcast
        except ImportError as error:
            raise UnsupportedError(
                "training in several processes needs the package accelerate", advice=f"{INSTALL} (or: accelerate)"
            ) from error
        self._accelerator: Any = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",  # the loop's own autocast, the same as in one process
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        self._broadcast = broadcast
        self.device = self._accelerator.device
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes

    def wrap(self, model: nn.Module) -> nn.Module:
        return self._accelerator.prepare_model(model)

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def mean(self, values: Tensor) -> Tensor:
        return self._accelerator.reduce(values, reduction="mean")

    def of_first(self, values: Sequence[float]) -> list[float]:
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self._broadcast(numbers, from_process=0).tolist()

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


def processes(device: torch.device) -> Processes:
    """The processes that this one was started with, as torchrun sets it in WORLD_SIZE."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return AcceleratedProcesses(device) if several else Processes(device)
