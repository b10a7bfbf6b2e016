"""The training loop: one process or several under torchrun, resumable at any moment, readable in one sitting."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hpcm_codec.checkpoints import save_checkpoint
from hpcm_codec.errors import FileError
from hpcm_codec.files import write_atomically
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.losses import lambda_at, rate_distortion


@dataclass(frozen=True)
class CropPhase:
    """From that share of the run on, train on `batch` crops of edge×edge pixels in each process."""

    start: float
    edge: int
    batch: int


@dataclass(frozen=True)
class TrainSettings:
    """Everything about a run but the model and the data.

    steps / minutes:  length of the run; whichever is given sets the schedule's clock (minutes: wall-clock of the run,
                      added up over resumes).
    learning_rate:    peak of AdamW's rate; constant after `warmup_steps`, then cosine to 0 from `decay_start` on.
    decay_rate_factor: learning-rate factor of the RWKV decay and boost.
    clip_norm:        largest gradient norm.
    ema:              decay of the averaged weights, which are the ones to ship.
    crops:            crop sizes over the run.
    """

    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 1.4e-3
    warmup_steps: int = 200
    decay_start: float = 0.4
    decay_rate_factor: float = 1.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema: float = 0.998
    crops: tuple[CropPhase, ...] = (CropPhase(0.0, 128, 8), CropPhase(0.6, 256, 2))
    save_minutes: float = 5.0
    log_every: int = 50
    seed: int = 0
    bfloat16: bool = True


class Averaged:
    """Exponential moving average of a model's parameters, in float32, warming up from the first step."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: p.detach().clone().float() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = list(self.values.values())
        torch._foreach_lerp_(averages, [p.detach().float() for p in model.parameters()], 1 - decay)


def schedule_factor(progress: float, step: int, settings: TrainSettings) -> float:
    """Learning-rate factor at a share of the run: warm-up, constant, cosine to zero."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    tail = max(0.0, progress - settings.decay_start) / max(1e-9, 1 - settings.decay_start)
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, tail)))


def crop_phase(progress: float, settings: TrainSettings) -> CropPhase:
    """The crop phase at a share of the run."""
    return [phase for phase in settings.crops if phase.start <= progress][-1]


class Trainer:
    """One run in one folder: state.pt (everything to resume), weights.safetensors (averaged), metrics.jsonl."""

    def __init__(
        self, config: ModelConfig, pictures: PackedPictures, folder: Path, settings: TrainSettings, device: str = "cpu"
    ) -> None:
        if settings.steps is None and settings.minutes is None:
            raise ValueError("a run needs a length: steps or minutes")
        for phase in settings.crops:
            pictures.large_enough(phase.edge)  # told now, not hours into the run
        self.config, self.settings, self.folder, self.device = config, settings, folder, torch.device(device)
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        torch.manual_seed(settings.seed)
        self.model = HPCM(config).to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Averaged(self.model, settings.ema)
        slow = [p for name, p in self.model.named_parameters() if name.endswith((".decay", ".boost"))]
        slow_ids = {id(p) for p in slow}
        groups = [
            {"params": [p for p in self.model.parameters() if id(p) not in slow_ids], "factor": 1.0},
            {"params": slow, "factor": settings.decay_rate_factor, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=settings.learning_rate,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        self.pictures = pictures
        self.step, self.seconds, self.skipped = 0, 0.0, 0
        # Each process draws its own crops, rates and noise.
        self.generator = np.random.default_rng([settings.seed, self.rank])
        torch.manual_seed(settings.seed * 1000 + self.rank)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.pt").exists():
            self._resume(folder / "state.pt")

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with a checkpoint's weights instead of the initial ones."""
        self.model.load_state_dict({name: value.float() for name, value in weights.items()})
        self.average = Averaged(self.model, self.settings.ema)

    # -- the run ------------------------------------------------------------------------------------------------

    def run(
        self,
        on_log: Callable[[dict[str, float]], None] | None = None,
        asked_to_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Train until the schedule's end, saving every `save_minutes` and once at the end.

        on_log:        given every row of metrics.jsonl, in process 0.
        asked_to_stop: asked after every step; True in process 0 saves and ends the run early.
        """
        wrapped: nn.Module = self.model
        if self.world > 1:
            wrapped = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.model.train()
        saved_at, resumed_at, seconds_before = time.monotonic(), time.monotonic(), self.seconds
        phase: CropPhase | None = None
        batches: Iterator[Tensor] = iter(())
        window: list[dict[str, float]] = []
        while (progress := self._progress()) < 1:
            if (wanted := crop_phase(progress, self.settings)) != phase:
                phase, batches = wanted, self._batches(wanted)
            waited = time.monotonic()
            x = next(batches).to(self.device).float().div_(255).contiguous(memory_format=torch.channels_last)
            waited = time.monotonic() - waited
            window.append({**self._train_step(wrapped, x, progress), "waited": waited})
            self.step += 1
            self.seconds = seconds_before + time.monotonic() - resumed_at
            if self.step % self.settings.log_every == 0:
                self._log(window, progress, on_log)
                window = []
            if self._agree(asked_to_stop is not None and asked_to_stop()):
                break
            if self._agree(time.monotonic() - saved_at > 60 * self.settings.save_minutes):
                self.save()
                saved_at = time.monotonic()
        self.save()

    def _train_step(self, wrapped: nn.Module, x: Tensor, progress: float) -> dict[str, float]:
        factor = schedule_factor(progress, self.step, self.settings)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * factor * group["factor"]
        position = self._rate_positions(x.shape[0]).to(self.device)
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.settings.bfloat16 else nullcontext()
        with autocast:
            result = wrapped(x, position)
        outcome = rate_distortion(result, x, lambda_at(position, self.config.lambdas))
        self.optimiser.zero_grad(set_to_none=True)
        outcome.loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        # All processes hold the same summed gradient, so they all skip or none does.
        if torch.isfinite(norm):
            self.optimiser.step()
            self.average.update(self.model)
        else:
            self.skipped += 1
        return {
            "loss": float(outcome.loss.detach()),
            "bpp": float(outcome.bits_per_pixel.mean()),
            "psnr": float((-10 * outcome.squared_error.log10()).mean()),
            "gradient_norm": float(norm),
            "learning_rate": self.settings.learning_rate * factor,
        }

    def _rate_positions(self, batch: int) -> Tensor:
        """Rate positions of this process's crops: each uniform, and one in every equal part of the range over the whole batch.

        With a few crops in a step, independent draws would make the gradient's size a matter of luck.
        """
        parts = torch.arange(batch) * self.world + self.rank
        return (parts + torch.rand(batch)) / (batch * self.world) * (self.config.rate_levels - 1)

    def _batches(self, phase: CropPhase) -> Iterator[Tensor]:
        return self.pictures.crops(phase.edge, phase.batch, self.generator)

    def _progress(self) -> float:
        """Share of the run that is done, the same in every process."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        assert self.settings.minutes is not None
        progress = torch.tensor(self.seconds / 60 / self.settings.minutes, dtype=torch.float64)
        if self.world > 1:
            dist.broadcast(progress, 0)
        return float(progress)

    def _agree(self, wish: bool) -> bool:
        """The wish of process 0, in every process."""
        if self.world == 1:
            return wish
        flag = torch.tensor(int(wish))
        dist.broadcast(flag, 0)
        return bool(flag)

    # -- files --------------------------------------------------------------------------------------------------

    def _log(
        self, window: list[dict[str, float]], progress: float, on_log: Callable[[dict[str, float]], None] | None
    ) -> None:
        if self.rank:
            return
        mean = {key: round(float(np.mean([entry[key] for entry in window])), 5) for key in window[0]}
        row = {"step": self.step, "progress": round(progress, 4), "seconds": round(self.seconds, 1), **mean}
        with (self.folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({**row, "skipped": self.skipped}) + "\n")
        if on_log is not None:
            on_log(row)

    def save(self) -> None:
        """Write state.pt and weights.safetensors, each under a temporary name first."""
        generators = self._generators_of_all_processes()
        if self.rank == 0:
            state: dict[str, Any] = {
                "config": self.config.to_json(),
                "settings": dataclasses.asdict(self.settings),
                "step": self.step,
                "seconds": self.seconds,
                "skipped": self.skipped,
                "model": self.model.state_dict(),
                "average": self.average.values,
                "average_updates": self.average.updates,
                "optimiser": self.optimiser.state_dict(),
                "generators": generators,
            }
            write_atomically(self.folder / "state.pt", lambda file: torch.save(state, file), overwrite=True)
            record = {"steps": self.step, "seconds": round(self.seconds), "settings": dataclasses.asdict(self.settings)}
            save_checkpoint(self.folder / "weights.safetensors", self.config, self.average.values, record)
        if self.world > 1:
            dist.barrier()

    def _generators_of_all_processes(self) -> list[tuple[Tensor, str]]:
        """The state of torch's and of numpy's random numbers in every process, to go on exactly."""
        mine = (torch.get_rng_state(), json.dumps(self.generator.bit_generator.state))
        if self.world == 1:
            return [mine]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, mine)
        return gathered

    def _resume(self, path: Path) -> None:
        # Our own file, and read without running anything that is pickled in it.
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["config"] != self.config.to_json():
            raise FileError(f"{path}: this run trains another model; choose another folder")
        self.model.load_state_dict(state["model"])
        self.average.values = state["average"]
        self.average.updates = state["average_updates"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        if len(state["generators"]) == self.world:
            random_numbers, crops = state["generators"][self.rank]
            torch.set_rng_state(random_numbers.cpu())
            self.generator.bit_generator.state = json.loads(crops)
