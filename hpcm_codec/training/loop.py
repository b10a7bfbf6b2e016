"""The training loop: one process or several under torchrun, resumable at any moment, short enough to read at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcm_codec.errors import HpcmError, UnsupportedError, UsageError
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training.averaging import Averaged
from hpcm_codec.training.captured import CapturedStep, Step
from hpcm_codec.training.compiling import compile_blocks
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.guard import Guard, Verdict, objection
from hpcm_codec.training.losses import RateDistortion, lambda_at, rate_distortion
from hpcm_codec.training.metrics import MetricsLog
from hpcm_codec.training.optimisers import Optimiser
from hpcm_codec.training.prefetch import OnDevice, Prefetcher
from hpcm_codec.training.processes import processes
from hpcm_codec.training.samples import Batch, draw_batch
from hpcm_codec.training.scoring import EDGE, shared_score
from hpcm_codec.training.settings import (
    TrainSettings,
    WarmUp,
    crop_phase,
    progress_at,
    schedule_factor,
    warm_up_after,
)
from hpcm_codec.training.states import GoodStates, Say, State, refuse_another_run
from hpcm_codec.training.updating import clipping, updating
from hpcm_codec.weights.checkpoints import save_checkpoint

OnLog = Callable[[dict[str, float]], None]
OTHER_WEIGHTS = "start another run from weights.safetensors, or from others, with --from"
SCORED_CROPS = 4  # of the training pictures, where there are no validation pictures; 2 s of a core for phase1-lite


class Trainer:
    """One run in one folder: the good states (see `states`), weights.safetensors (averaged), metrics.jsonl.

    A run that is in the folder already is continued; its settings may change, but not the model and the optimiser.
    validation:   what the weights are scored on before a state is called good, N×3×H×W in [0, 1]; None: fixed training crops.
    say:          called with a line of text, in process 0, for every event of the run that its owner should know.
    waited_share: of the time spent in steps by this process, the part in which it waited for data.
    """

    def __init__(
        self,
        config: ModelConfig,
        pictures: PackedPictures,
        folder: Path,
        settings: TrainSettings,
        device: str = "cpu",
        validation: Tensor | None = None,
        say: Say = lambda line: None,
    ) -> None:
        if settings.steps is None and settings.minutes is None:
            raise ValueError("a run needs a length: steps or minutes")
        for phase in settings.crops:
            pictures.large_enough(phase.edge)  # reported now, not hours into the run
        if settings.cuda_graph and torch.device(device).type != "cuda":
            raise UsageError(
                "CUDA graphs need a CUDA device", advice="leave --cuda-graph out, or train with --device cuda"
            )
        self.config, self.settings, self.folder, self.pictures = config, settings, folder, pictures
        self.processes = processes(torch.device(device))
        self.device = self.processes.device
        torch.manual_seed(settings.seed)
        # How activations are kept is a matter of the run, not of the checkpoint that comes out.
        self.model = HPCM(dataclasses.replace(config, use_checkpoint=settings.activation_checkpointing))
        self.model.to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.compile:
            compile_blocks(self.model)
        self.average = Averaged(self.model, settings.ema)
        self.optimiser = Optimiser(self.model, settings)
        draw = partial(draw_batch, pictures, config, settings, rank=self.processes.rank, world=self.processes.world)
        self.samples = OnDevice(Prefetcher(draw, settings.loaders), self.device)
        self.step, self.seconds, self.skipped, self.went_back = 0, 0.0, 0, 0
        self.guard = Guard()
        self.scored = pictures.sample(EDGE, SCORED_CROPS) if validation is None else validation
        self.score: float | None = None  # of the last good state
        self.best_score: float | None = None
        self.warm_up = WarmUp()
        self.waited_share = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self._say: Say = say if self.processes.rank == 0 else lambda line: None
        self.states = GoodStates(folder, self._say)
        if self.states.exist():
            self._resume(*self.states.newest())
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
        """Train until the schedule's end, saving good states every `save_minutes` and once at the end.

        on_log:        called with every row of metrics.jsonl, in process 0.
        asked_to_stop: called before every step; True in process 0 saves and ends the run early.
        Raises UnsupportedError when torch.compile is requested and does not work, HpcmError when the run diverges again and again.
        """
        self._begin()
        self._prepare_update()
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
            if save_due and self.guard.settled and self.step != self.states.step:
                if problem := self.save():
                    self._go_back(problem)
                saved_at = time.monotonic()
            waited = time.monotonic()
            batch = self._draw(progress)
            waited = time.monotonic() - waited
            window.append({**self._train_step(batch, progress), "waited": waited})
            self.step += 1
            waited_in_all += waited
            self.seconds = seconds_before + time.monotonic() - began
            self.waited_share = waited_in_all / (self.seconds - seconds_before)
            if self.step % self.settings.log_every == 0:
                self._log(window, progress, on_log)
                window = []
            if self.guard.verdict is Verdict.GO_BACK:
                self._go_back("the loss or the gradient stays an outlier")
        self.samples.close()
        if problem := self.save(last=True):
            self._say(f"step {self.step}: {problem}; not saved, the last good state is that of step {self.states.step}")
        if self.log is not None:
            self.log.close()

    def _prepare_update(self) -> None:
        """Hand the weights, averages and moments as they are now to the update, which may move them to other memory."""
        self.update = updating(self.model, self.optimiser, self.average, self.processes)
        self._wrapped = self.update.wrap(self.model)
        self._losses: Step = CapturedStep(self._plain_losses) if self.settings.cuda_graph else self._plain_losses

    def _progress(self) -> float:
        return progress_at(self.step, self.seconds, self.settings)

    def _draw(self, progress: float) -> Batch:
        return self.samples.take(crop_phase(progress, self.settings), self.step)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.settings.bfloat16 else nullcontext()

    def _plain_losses(self, batch: Batch) -> RateDistortion:
        """Forward and backward pass."""
        x = batch.pixels.float().div_(255)
        if self.device.type != "cpu":  # there, patches are taken out of whole colour planes
            x = x.contiguous(memory_format=torch.channels_last)
        try:
            with self._autocast():
                result = self._wrapped(x, batch.position, batch.noise)
        except Exception as error:
            if self.settings.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = f"torch.compile does not work here ({str(error)[:200]})"
                raise UnsupportedError(reason, advice="leave --compile out") from error
            raise
        outcome = rate_distortion(result, x, lambda_at(batch.position, self.config.lambdas))
        self.update.backward(outcome.loss)
        return outcome

    def _train_step(self, batch: Batch, progress: float) -> dict[str, float]:
        outcome = self._losses(batch)
        norm = self.update.norm()
        bits, error = outcome.bits_per_pixel.mean(), outcome.squared_error.log10().mean()
        own_loss, bpp, log_error = torch.stack((outcome.loss.detach(), bits, error)).tolist()  # one wait for the device
        rate = self.settings.learning_rate * schedule_factor(progress, self.step, self.settings, self.warm_up)
        # All processes hold the same numbers, so they all skip or none does.
        loss, size = own_loss, norm
        if self.processes.world > 1:
            loss, size = self.processes.mean(torch.tensor((own_loss, norm), device=self.device)).tolist()
        if self.guard.judge(loss, size, kind=batch.pixels.shape) is Verdict.USE:
            self.update.apply(rate, clipping(norm, self.settings.clip_norm))
        else:
            self.update.skip()
            self.skipped += 1
        return {
            "loss": own_loss,
            "bpp": bpp,
            "psnr": -10 * log_error,
            "gradient_norm": norm,
            "learning_rate": rate,
        }

    # -- good states --------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Have a good state to go back to, and a score to compare with; raises HpcmError when the weights are broken already."""
        problem = self._look() if self.step else self.save()
        if problem and self.step and self.states.pass_over():
            self._say(f"{self.folder}: the newest state has diverged ({problem}); taking the one before")
            self._resume(*self.states.newest())
            problem = self._look()
        if problem:
            raise HpcmError(f"the run begins with diverged weights: {problem}", file=self.folder, advice=OTHER_WEIGHTS)

    def _look(self) -> str | None:
        """Score the weights and their averages; returns why they are no good state, None when they are."""
        averaged, raw = (self._score_of(weights) for weights in (self.average.values, self.model.state_dict()))
        problem = objection(averaged, raw, self.best_score if self.guard.experienced else None)
        if problem is None:
            self.score, self.best_score = averaged, min(averaged, self.best_score or averaged)
        return problem

    def _score_of(self, weights: dict[str, Tensor]) -> float:
        with self._autocast():
            return shared_score(self.config, weights, self.scored, self.processes)

    def _go_back(self, reason: str) -> None:
        """Load the last good state; step and seconds keep counting, so that schedule and samples do not repeat."""
        state = self.states.go_back()
        self._take(state)
        self.processes.wait()
        self._prepare_update()
        self.guard.went_back()
        self.went_back += 1
        self._say(
            f"step {self.step}: {reason}; going back to the good state of step {state['step']}, with other samples"
        )

    def save(self, last: bool = False) -> str | None:
        """Write a good state and weights.safetensors, each under a temporary name first; returns why not when nothing is written.

        last: at a run's end the scores alone decide; before, a state right after outliers is not saved.
        A process that is killed in between leaves weights that are older than the state; the run that goes on writes them again.
        """
        problem = (
            self._look()
            if self.guard.settled or last
            else "the last steps were outliers, or the run has just gone back"
        )
        if problem is not None:
            return problem
        settings = dataclasses.asdict(self.settings)
        state: State = {
            "config": self.config.to_json(),
            "settings": settings,
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "went_back": self.went_back,
            "score": self.score,
            "warm_up": dataclasses.asdict(self.warm_up),
            "model": self.model.state_dict(),
            "average": self.average.values,
            "average_updates": self.average.updates,
            "optimiser": self.optimiser.state_dict(),
            "generators": [],  # versions up to 0.1 look for it; random numbers now follow from seed and step
        }
        self.states.write(state, here=self.processes.rank == 0)
        if self.processes.rank == 0:
            record = {"steps": self.step, "seconds": round(self.seconds), "score": self.score, "settings": settings}
            save_checkpoint(self.folder / "weights.safetensors", self.config, self.average.values, record)
        self.processes.wait()
        return None

    def _resume(self, state: State, path: Path) -> None:
        """Take over the state of a run; raises FileError for another model's or optimiser's."""
        refuse_another_run(state, path, self.config, self.settings)
        self._take(state)
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        self.went_back = state.get("went_back", 0)
        saved, warm_up = TrainSettings.from_saved(state["settings"]), WarmUp(**state.get("warm_up", {}))
        self.warm_up = warm_up_after(self.step, self.seconds, saved, warm_up, self.settings)

    def _take(self, state: State) -> None:
        """The weights, averages and moments of a state."""
        self.model.load_state_dict(state["model"])
        self.average.values = {name: value.to(self.device) for name, value in state["average"].items()}
        self.average.updates = state["average_updates"]
        self.optimiser.load_state_dict(state["optimiser"])

    # -- metrics ------------------------------------------------------------------------------------------------

    def _log(self, window: list[dict[str, float]], progress: float, on_log: OnLog | None) -> None:
        """A row of the window's means, over its steps and over all processes."""
        means = [float(np.mean([entry[key] for entry in window])) for key in window[0]]
        means = self.processes.mean(torch.tensor(means, device=self.device)).tolist()
        row = {"step": self.step, "progress": round(progress, 4), "seconds": round(self.seconds, 1)}
        row |= {key: round(mean, 5) for key, mean in zip(window[0], means, strict=True)}
        if self.log is not None:
            counts: dict[str, float] = {"skipped": self.skipped, "went_back": self.went_back}
            assert self.score is not None  # every run has one
            self.log.write({**row, **counts, "score": round(self.score, 5)})
            if on_log is not None:
                on_log(row)
