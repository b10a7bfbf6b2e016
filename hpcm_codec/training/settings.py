"""Everything about a run but the model and the data, and the schedules of learning rate and crop size that follow from it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal


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
    learning_rate:    peak; constant after `warmup_steps`, then cosine to 0 from `decay_start` (a share of the run) on.
    decay_rate_factor: learning-rate factor of the RWKV decay and boost.
    transform_rate_factor: learning-rate factor of everything else in analysis and synthesis.
    patch_rate_factor: learning-rate factor of the projections between pixels and patches: sums over hundreds of pixels of one sign.
    clip_norm:        largest gradient norm.
    ema:              decay of the averaged weights, which are the ones to ship.
    optimiser:        "adamw"; "muon": Muon for matrices, 1×1 convolutions among them; "soap": SOAP for all weights of linear layers
                      and convolutions but the depthwise ones; AdamW for the rest.
    basis_refresh:    steps between two changes of SOAP's eigenbases.
    crops:            crop sizes over the run.
    smallest_scale:   crops are drawn from pictures shrunk by a random factor between this and 1; 1 never shrinks.
    loaders:          processes that draw samples ahead of their step; 0: the training process itself draws them.
    activation_checkpointing: recompute the cells' activations in the backward pass: less memory, more time.
    compile:          run the network's blocks through torch.compile.
    cuda_graph:       replay forward and backward pass as a CUDA graph; on a CUDA device, in one process.
    tensorboard:      write the metrics for TensorBoard too.
    """

    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 1.4e-3
    warmup_steps: int = 200
    decay_start: float = 0.4
    decay_rate_factor: float = 1.0
    patch_rate_factor: float = 1.0
    transform_rate_factor: float = 1.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema: float = 0.998
    optimiser: Literal["adamw", "muon", "soap"] = "adamw"
    basis_refresh: int = 10
    crops: tuple[CropPhase, ...] = (CropPhase(0.0, 128, 8), CropPhase(0.6, 256, 2))
    smallest_scale: float = 1.0
    loaders: int = 0
    save_minutes: float = 5.0
    log_every: int = 50
    seed: int = 0
    bfloat16: bool = True
    activation_checkpointing: bool = False
    compile: bool = False
    cuda_graph: bool = False
    tensorboard: bool = False

    @classmethod
    def from_saved(cls, values: dict[str, Any]) -> TrainSettings:
        """The settings that a state file holds; fields that it lacks have their defaults, unknown ones are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        kept["crops"] = tuple(CropPhase(**phase) for phase in kept["crops"])
        return cls(**kept)


@dataclass(frozen=True)
class WarmUp:
    """Where the learning rate rises from: at `step`, from `factor` times the peak."""

    step: int = 0
    factor: float = 0.0


# what a run may not change without warming up again
_SCHEDULE = ("steps", "minutes", "learning_rate", "warmup_steps", "decay_start")


def progress_at(step: int, seconds: float, settings: TrainSettings) -> float:
    """Share of the run that is done after that many steps or seconds; above 1 when it has run for longer."""
    if settings.steps is not None:
        return step / settings.steps
    assert settings.minutes is not None
    return seconds / 60 / settings.minutes


def schedule_factor(progress: float, step: int, settings: TrainSettings, warm_up: WarmUp = WarmUp()) -> float:
    """Learning-rate factor in [0, 1] at a share of the run: warm-up, constant, cosine to zero."""
    rising = warm_up.factor + (step - warm_up.step + 1) / max(1, settings.warmup_steps)
    tail = max(0.0, progress - settings.decay_start) / max(1e-9, 1 - settings.decay_start)
    return min(1.0, rising, 0.5 * (1 + math.cos(math.pi * min(1.0, tail))))


def warm_up_after(step: int, seconds: float, saved: TrainSettings, warm_up: WarmUp, settings: TrainSettings) -> WarmUp:
    """The warm-up of a run that goes on with `settings` after it was saved with `saved` and `warm_up`.

    The same one as long as the schedule is the same. On another schedule (a longer run, say) the rate rises from where
    it was, at the pace of a warm-up, to what the new schedule prescribes: it never jumps upwards.
    """
    if step == 0 or all(getattr(saved, name) == getattr(settings, name) for name in _SCHEDULE):
        return warm_up
    last = schedule_factor(progress_at(step, seconds, saved), step - 1, saved, warm_up)
    return WarmUp(step, last * saved.learning_rate / settings.learning_rate)


def crop_phase(progress: float, settings: TrainSettings) -> CropPhase:
    """The crop phase at a share of the run."""
    return [phase for phase in settings.crops if phase.start <= progress][-1]
