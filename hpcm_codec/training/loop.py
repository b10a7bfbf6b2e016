"""The training loop: one process or several under torchrun, resumable at any moment, readable in one sitting."""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcm_codec.checkpoints import save_checkpoint
from hpcm_codec.errors import FileError, UnsupportedError
from hpcm_codec.files import write_atomically
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training.averaging import Averaged
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.losses import lambda_at, rate_distortion
from hpcm_codec.training.metrics import MetricsLog
from hpcm_codec.training.optimisers import Optimiser
from hpcm_codec.training.prefetch import Prefetcher
from hpcm_codec.training.processes import processes
from hpcm_codec.training.samples import Batch, draw_batch
from hpcm_codec.training.settings import (
    TrainSettings,
    WarmUp,
    crop_phase,
    progress_at,
    schedule_factor,
    warm_up_after,
)

OnLog = Callable[[dict[str, float]], None]


class Trainer:
    """One run in one folder: state.pt (everything to resume), weights.safetensors (averaged), metrics.jsonl.

    A run that is in the folder already goes on; it may go on with other settings, but with the same model and optimiser.
    waited_share: of the time spent in steps by this process, the part in which it waited for data.
    """

    def __init__(
        self, config: ModelConfig, pictures: PackedPictures, folder: Path, settings: TrainSettings, device: str = "cpu"
    ) -> None:
        if settings.steps is None and settings.minutes is None:
            raise ValueError("a run needs a length: steps or minutes")
        for phase in settings.crops:
            pictures.large_enough(phase.edge)  # told now, not hours into the run
        self.config, self.settings, self.folder, self.pictures = config, settings, folder, pictures
        self.processes = processes(torch.device(device))
        self.device = self.processes.device
        torch.manual_seed(settings.seed)
        # How activations are kept is a matter of the run, not of the checkpoint that comes out.
        self.model = HPCM(dataclasses.replace(config, use_checkpoint=settings.activation_checkpointing))
        self.model.to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Averaged(self.model, settings.ema)
        self.optimiser = Optimiser(self.model, settings)
        draw = partial(draw_batch, pictures, config, settings, rank=self.processes.rank, world=self.processes.world)
        self.samples = Prefetcher(draw, settings.loaders)
        self.step, self.seconds, self.skipped = 0, 0.0, 0
        self.warm_up = WarmUp()
        self.waited_share = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.pt").exists():
            self._resume(folder / "state.pt")
        self.processes.wait()
        self.log: MetricsLog | None = None
        if self.processes.rank == 0:
            for left_behind in folder.glob(".hpcm-*.tmp"):  # by a process that was killed while it saved
                left_behind.unlink()
            self.log = MetricsLog(folder, self.step, settings.tensorboard)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with a checkpoint's weights instead of the initial ones."""
        self.model.load_state_dict({name: value.float() for name, value in weights.items()})
        self.average = Averaged(self.model, self.settings.ema)

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self, on_log: OnLog | None = None, asked_to_stop: Callable[[], bool] | None = None) -> None:
        """Train until the schedule's end, saving every `save_minutes` and once at the end.

        on_log:        given every row of metrics.jsonl, in process 0.
        asked_to_stop: asked before every step; True in process 0 saves and ends the run early.
        Raises UnsupportedError when torch.compile is wanted and does not work.
        """
        compiled = torch.compile(self.model) if self.settings.compile else self.model
        wrapped = self.processes.wrap(compiled)  # type: ignore[arg-type]
        self.model.train()
        began, seconds_before, saved_at = time.monotonic(), self.seconds, time.monotonic()
        waited_in_all = 0.0
        window: list[dict[str, float]] = []
        while True:
            save_due = time.monotonic() - saved_at > 60 * self.settings.save_minutes
            stop = asked_to_stop is not None and asked_to_stop()
            progress, save_due, stop = self.processes.of_first((self._progress(), save_due, stop))  # type: ignore[assignment]
            if progress >= 1 or stop:
                break
            if save_due:
                self.save()
                saved_at = time.monotonic()
            waited = time.monotonic()
            batch = self._draw(progress)
            waited = time.monotonic() - waited
            window.append({**self._train_step(wrapped, batch, progress), "waited": waited})
            self.step += 1
            waited_in_all += waited
            self.seconds = seconds_before + time.monotonic() - began
            self.waited_share = waited_in_all / (self.seconds - seconds_before)
            if self.step % self.settings.log_every == 0:
                self._log(window, progress, on_log)
                window = []
        self.samples.close()
        self.save()
        if self.log is not None:
            self.log.close()

    def _progress(self) -> float:
        return progress_at(self.step, self.seconds, self.settings)

    def _draw(self, progress: float) -> Batch:
        return self.samples.take(crop_phase(progress, self.settings), self.step).to(self.device)

    def _train_step(self, wrapped: nn.Module, batch: Batch, progress: float) -> dict[str, float]:
        x = batch.pixels.float().div_(255).contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.settings.bfloat16 else nullcontext()
        try:
            with autocast:
                result = wrapped(x, batch.position, batch.noise)
        except Exception as error:
            if self.settings.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = f"torch.compile does not work here ({str(error)[:200]})"
                raise UnsupportedError(reason, advice="leave --compile out") from error
            raise
        outcome = rate_distortion(result, x, lambda_at(batch.position, self.config.lambdas))
        self.model.zero_grad(set_to_none=True)
        self.processes.backward(outcome.loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        rate = self.settings.learning_rate * schedule_factor(progress, self.step, self.settings, self.warm_up)
        # All processes hold the same summed gradient, so they all skip or none does.
        if torch.isfinite(norm):
            self.optimiser.step(rate)
            self.average.update(self.model)
        else:
            self.skipped += 1
        return {
            "loss": float(outcome.loss.detach()),
            "bpp": float(outcome.bits_per_pixel.mean()),
            "psnr": float((-10 * outcome.squared_error.log10()).mean()),
            "gradient_norm": float(norm),
            "learning_rate": rate,
        }

    # -- files --------------------------------------------------------------------------------------------------

    def _log(self, window: list[dict[str, float]], progress: float, on_log: OnLog | None) -> None:
        """A row of the window's means, over its steps and over all processes."""
        means = [float(np.mean([entry[key] for entry in window])) for key in window[0]]
        means = self.processes.mean(torch.tensor(means, device=self.device)).tolist()
        row = {"step": self.step, "progress": round(progress, 4), "seconds": round(self.seconds, 1)}
        row |= {key: round(mean, 5) for key, mean in zip(window[0], means, strict=True)}
        if self.log is not None:
            self.log.write({**row, "skipped": self.skipped})
            if on_log is not None:
                on_log(row)

    def save(self) -> None:
        """Write state.pt and weights.safetensors, each under a temporary name first.

        A process that is killed in between leaves weights that are older than the state; the run that goes on writes them again.
        """
        if self.processes.rank == 0:
            settings = dataclasses.asdict(self.settings)
            state: dict[str, Any] = {
                "config": self.config.to_json(),
                "settings": settings,
                "step": self.step,
                "seconds": self.seconds,
                "skipped": self.skipped,
                "warm_up": dataclasses.asdict(self.warm_up),
                "model": self.model.state_dict(),
                "average": self.average.values,
                "average_updates": self.average.updates,
                "optimiser": self.optimiser.state_dict(),
                "generators": [],  # versions up to 0.1 look for it; random numbers now follow from seed and step
            }
            write_atomically(self.folder / "state.pt", lambda file: torch.save(state, file), overwrite=True)
            record = {"steps": self.step, "seconds": round(self.seconds), "settings": settings}
            save_checkpoint(self.folder / "weights.safetensors", self.config, self.average.values, record)
        self.processes.wait()

    def _resume(self, path: Path) -> None:
        """Take over the state of a run; raises FileError for a damaged file and for another model's or optimiser's."""
        try:
            # Our own file, and read without running anything that is pickled in it.
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise FileError("damaged", file=path, advice="start again from weights.safetensors with --from") from error
        if ModelConfig.from_json(state["config"]) != self.config:
            raise FileError(f"{path}: this run trains another model; choose another folder")
        saved = TrainSettings.from_saved(state["settings"])
        if saved.optimiser != self.settings.optimiser:
            raise FileError(
                f"this run uses the optimiser {saved.optimiser}", file=path, advice="name it, or choose another folder"
            )
        if (saved.patch_rate_factor == 1) != (self.settings.patch_rate_factor == 1):
            reason = f"this run's patch rate factor is {saved.patch_rate_factor:g}, and it stays 1 or not 1"
            raise FileError(reason, file=path, advice="give it with --patch-rate-factor, or choose another folder")
        self.model.load_state_dict(state["model"])
        self.average.values = {name: value.to(self.device) for name, value in state["average"].items()}
        self.average.updates = state["average_updates"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        warm_up = WarmUp(**state.get("warm_up", {}))
        self.warm_up = warm_up_after(self.step, self.seconds, saved, warm_up, self.settings)
