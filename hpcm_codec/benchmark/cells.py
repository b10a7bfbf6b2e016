"""The cell of a full-resolution context step, compared: the baseline's cross-attention, Phase 1's RWKV at full width, and narrower ones.

A step is adaptor, prior and cell. Only the cell differs, so adaptor and prior are measured once. All candidates are timed in turn, round
after round, so that other work on the machine affects all of them alike; only ratios within one run can be compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpcm_codec.benchmark.allocations import allocations_of
from hpcm_codec.benchmark.timing import clock, waiter
from hpcm_codec.model.cells import ContextCell
from hpcm_codec.model.complexity import operations_of
from hpcm_codec.model.config import CellConfig, preset
from hpcm_codec.model.priors import Prior, StepAdaptor
from hpcm_codec.tiles.grid import PIXELS_PER_LATENT

BASELINE = "hpcm-base"
SIZES = ((768, 512), (1920, 1080))
# The reductions that Phase 1 was planned to reach against the baseline: operations, memory, time.
TARGET = {"operations": -0.27, "memory_bytes": -0.22, "seconds": -0.29}
NARROW = (
    (320, 1.0),
    (288, 2.0),
    (256, 3.0),
    (256, 2.0),
    (224, 4.0),
    (224, 2.0),
    (192, 4.0),
    (192, 2.0),
)  # width, hidden_rate
FEWEST_ROUNDS, MOST_ROUNDS = 3, 30
S3 = 2


@dataclass(frozen=True)
class Candidate:
    """preset: that has this cell at s3, or None."""

    title: str
    cell: CellConfig
    preset: str | None = None


def candidates() -> list[Candidate]:
    """The baseline first, then Phase 1 at full width, then the narrower cells; other settings are those of the presets."""
    slim = preset("phase1-slim").cells[S3]
    found = [
        Candidate("cross-attention, window 8", preset(BASELINE).cells[S3], BASELINE),
        Candidate("RWKV, width 640, rate 4", preset("phase1").cells[S3], "phase1"),
    ]
    for width, rate in NARROW:
        cell = CellConfig(kind="rwkv", width=width, hidden_rate=rate, residual=True)
        found.append(Candidate(f"RWKV, width {width}, rate {rate:g}", cell, "phase1-slim" if cell == slim else None))
    return found


class _AdaptorAndPrior(nn.Module):
    """What every s3 step of the full-size presets has before its cell."""

    def __init__(self) -> None:
        super().__init__()
        config = preset(BASELINE)
        self.adaptor, self.prior = StepAdaptor(config, 4), Prior(config, config.prior_blocks_s3)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        rate = torch.ones(1, 1, device=context.device)
        adapted, context = self.adaptor(context, latents)
        return self.prior(adapted, self.adaptor.gain, context, rate)


def compare_cells(
    width: int, height: int, device: str = "cpu", seconds: float = 15.0, chosen: Sequence[Candidate] | None = None
) -> dict[str, Any]:
    """Operations, memory and time of every candidate's forward pass on a picture of that size, its lattice in one piece.

    operations: of convolutions, matrix products and attention, two for each multiply-add. memory: weights, arguments and what is
    allocated at most meanwhile. seconds: how long all rounds together may take, three rounds at least. chosen: None for `candidates`.
    """
    chosen = candidates() if chosen is None else chosen
    channels = 2 * preset(BASELINE).latent_channels
    rows, columns = (-(-side // PIXELS_PER_LATENT) for side in (height, width))
    parts: list[tuple[nn.Module, tuple[int, int]]] = [(_AdaptorAndPrior(), (channels // 2, channels))]
    parts += [
        (ContextCell(channels, candidate.cell, use_checkpoint=False), (channels, channels)) for candidate in chosen
    ]
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        works = [_Work(module.to(device), sides, rows, columns, device) for module, sides in parts]
        times = _in_turn([work.run for work in works], device, seconds)
        figures = [
            work.figures() | {"seconds": round(statistics.median(taken), 6), "rounds": len(taken)}
            for work, taken in zip(works, times, strict=True)
        ]
    rows_of_table = [
        {"title": candidate.title, "preset": candidate.preset} | figure
        for candidate, figure in zip(chosen, figures[1:], strict=True)
    ]
    return {"width": width, "height": height, "before_the_cell": figures[0], "cells": rows_of_table}


class _Work:
    """A module with arguments of the size that is measured."""

    def __init__(self, module: nn.Module, channels: tuple[int, ...], rows: int, columns: int, device: str) -> None:
        self.module = module.eval().requires_grad_(False)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.shapes = [(1, count, rows, columns) for count in channels]
        self.arguments = [
            torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last) for shape in self.shapes
        ]
        self.device = device

    def run(self) -> None:
        self.module(*self.arguments)

    def figures(self) -> dict[str, int]:
        """Parameters, operations, and bytes of memory."""
        weights = sum(parameter.numel() for parameter in self.module.parameters())
        given = 4 * (weights + sum(argument.numel() for argument in self.arguments))
        return {"parameters": weights, "operations": operations_of(self.run), "memory_bytes": given + self._peak()}

    def _peak(self) -> int:
        if not self.device.startswith("cuda"):
            return allocations_of(self.run).peak
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.run()
        return torch.cuda.max_memory_allocated(self.device) - before


def _in_turn(works: Sequence[Callable[[], None]], device: str, seconds: float) -> list[list[float]]:
    """Seconds of each work in every round, after a round to warm up."""
    read = clock(waiter(device))
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    began = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= FEWEST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for work, taken in zip(works, times, strict=True):
            start = read()
            work()
            taken.append(read() - start)
    return times


def meets_target(cell: dict[str, Any], baseline: dict[str, Any]) -> bool:
    """Whether a cell reaches all planned reductions against the baseline."""
    return all(cell[quantity] <= (1 + change) * baseline[quantity] for quantity, change in TARGET.items())
