"""One context model trained on stored latents, stretch by stretch.

All variants begin with the same trained hyperprior and, wherever they have a tensor in common, with the same initial values of the seed.
All see the same samples: latents, rates and noise follow from seed and step. What decides the distortion is fixed: the transforms, the
gains and the correction after them. So the bits are all that differs.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpcm_codec.errors import HpcmError
from hpcm_codec.model.hpcm import HPCM, Likelihoods, Noise
from hpcm_codec.model.rate import spread_positions
from hpcm_codec.ops import fused
from hpcm_codec.system.files import write_atomically
from hpcm_codec.tiles.grid import PIXELS_PER_LATENT
from hpcm_codec.training.averaging import Averaged
from hpcm_codec.training.guard import Guard, Verdict
from hpcm_codec.training.losses import REFERENCE_LAMBDA, bits_of, lambda_at
from hpcm_codec.training.optimisers import Optimiser
from hpcm_codec.training.processes import Processes
from hpcm_codec.training.settings import TrainSettings
from hpcm_codec.training.updating import clipping, updating
from hpcm_codec.weights.checkpoints import Checkpoint
from phases.latents import TRAIN, VALID, opened
from phases.variants import REFERENCE, VARIANTS

SETTINGS = TrainSettings(learning_rate=1e-3, warmup_steps=100, ema=0.998, steps=1)
BATCH = 4
_TRAINED = ("h_a.", "h_s.", "hyper_mean.", "hyper_scale.", "rate_control.")
_FIXED = ("log_gain", "log_inverse_correction")  # of the rate control: with the transforms they decide the distortion


@dataclass(frozen=True)
class Row:
    """The averaged weights after a stretch. seconds: of one core, in steps so far; bpp: at the three rates of `spread_positions`."""

    step: int
    seconds: float
    bpp: tuple[float, ...]


def starting_model(variant: str, seed: int, trained: Checkpoint) -> HPCM:
    """A variant without transforms, before its first step; trained: the model whose latents are stored."""
    torch.manual_seed(seed)
    common = HPCM(VARIANTS[REFERENCE]).state_dict()
    torch.manual_seed(seed)
    model = HPCM(VARIANTS[variant])
    weights = model.state_dict()
    for name, value in weights.items():
        if name.startswith(_TRAINED):
            weights[name] = trained.weights[name].float()
        elif name in common and common[name].shape == value.shape:
            weights[name] = common[name]
    model.load_state_dict(weights)
    model.g_a, model.g_s = (type(part)() for part in (model.g_a, model.g_s))
    assert model.rate_control is not None
    for name in _FIXED:
        value = getattr(model.rate_control, name).detach()
        delattr(model.rate_control, name)
        model.rate_control.register_buffer(name, value)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class Run:
    """A variant with one seed, in a folder that also holds the stored latents: VARIANT-SEED.pt (to go on) and .json (its rows)."""

    def __init__(self, folder: Path, variant: str, seed: int, trained: Checkpoint) -> None:
        self._state_file = folder / f"{variant}-{seed}.pt"
        self._rows_file = rows_file(folder, variant, seed)
        self._seed, self._config = seed, VARIANTS[variant]
        self._train, self._valid = opened(folder, TRAIN), opened(folder, VALID)
        self.model = starting_model(variant, seed, trained)
        self._average = Averaged(self.model, SETTINGS.ema)
        self._optimiser = Optimiser(self.model, SETTINGS)
        self._guard = Guard()
        self.step, self.seconds = 0, 0.0
        self.rows: list[Row] = []
        if self._state_file.exists():
            self._resume()
        self._update = updating(self.model, self._optimiser, self._average, Processes(torch.device("cpu")))

    def stretch(self, steps: int) -> None:
        """Train that many steps more, measure, and save. Raises HpcmError where the weights diverge."""
        if not self.rows:
            self.rows.append(self._row())
        self.model.train()
        began = time.process_time()
        for _ in range(steps):
            self._train_step()
            self.step += 1
        self.seconds += time.process_time() - began
        self.rows.append(self._row())
        self._save()

    def _train_step(self) -> None:
        latents, position, noise = self._draw()
        with torch.autocast("cpu", torch.bfloat16), fused.step():
            rate = self.model.rate_at(position, len(position))
            coded = self.model.code_in_simulation(latents, rate, noise)
        weight = (lambda_at(position, self._config.lambdas) / REFERENCE_LAMBDA).sqrt()
        loss = (bits_per_pixel(coded.likelihoods) / weight).mean()
        self._update.backward(loss)
        norm = self._update.norm()
        verdict = self._guard.judge(float(loss.detach()), norm)
        if verdict is Verdict.GO_BACK:
            raise HpcmError(f"{self._state_file.stem} diverged at step {self.step}")
        if verdict is Verdict.USE:
            rate_now = SETTINGS.learning_rate * min(1.0, (self.step + 1) / SETTINGS.warmup_steps)
            self._update.apply(rate_now, clipping(norm, SETTINGS.clip_norm))
        else:
            self._update.skip()

    def _draw(self) -> tuple[Tensor, Tensor, Noise]:
        """The samples of a step: a function of seed and step alone."""
        generator = np.random.default_rng([self._seed, self.step])
        chosen = generator.integers(len(self._train), size=BATCH)
        # Every rate in its own part of the range, as in the training of whole models.
        position = (np.arange(BATCH) + generator.random(BATCH)) / BATCH * (self._config.rate_levels - 1)
        latents = _as_tensor(np.stack([self._train[n] for n in chosen]))
        uniform = torch.Generator().manual_seed(int(generator.integers(2**63)))
        batch, channels, height, width = latents.shape
        hyper = (batch, self._config.hyper_channels, height // 4, width // 4)
        noise = Noise(
            torch.rand(batch, channels, height, width, generator=uniform) - 0.5,
            torch.rand(*hyper, generator=uniform) - 0.5,
        )
        return latents, torch.tensor(position, dtype=torch.float32), noise

    @torch.no_grad()
    def _row(self) -> Row:
        """The bits of the validation pictures' rounded latents with the averaged weights."""
        raw = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        _copy(self._average.values, self.model)
        self.model.eval()
        found = []
        for position in spread_positions(self._config.rate_levels):
            bits = []
            for part in np.array_split(self._valid, max(1, len(self._valid) // BATCH)):
                with torch.autocast("cpu", torch.bfloat16):
                    rate = self.model.rate_at(position, len(part))
                    bits.append(bits_per_pixel(self.model.code_in_simulation(_as_tensor(part), rate).likelihoods))
            found.append(float(torch.cat(bits).mean()))
        _copy(raw, self.model)
        return Row(self.step, round(self.seconds, 2), tuple(found))

    def _save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self._average.values,
            "average_updates": self._average.updates,
            "optimiser": self._optimiser.state_dict(),
        }
        rows = json.dumps([vars(row) for row in self.rows], indent=1)
        write_atomically(self._rows_file, rows.encode(), overwrite=True)
        write_atomically(self._state_file, lambda file: torch.save(state, file), overwrite=True)

    def _resume(self) -> None:
        state: dict[str, Any] = torch.load(self._state_file, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self._average.values, self._average.updates = state["average"], state["average_updates"]
        self._optimiser.load_state_dict(state["optimiser"])
        self.rows = [row for row in read_rows(self._rows_file) if row.step <= self.step]


def bits_per_pixel(likelihoods: Likelihoods) -> Tensor:
    """Of each sample, B: the bits of latents and hyper-latents, per pixel of the picture."""
    return bits_of(likelihoods) / (PIXELS_PER_LATENT**2 * likelihoods["y"][0, 0].numel())


def rows_file(folder: Path, variant: str, seed: int) -> Path:
    return folder / f"{variant}-{seed}.json"


def read_rows(path: Path) -> list[Row]:
    """The rows of a run; none where it has not begun."""
    if not path.exists():
        return []
    return rows_of(json.loads(path.read_text()))


def rows_of(record: list[dict[str, Any]]) -> list[Row]:
    """Rows as they are written in JSON."""
    return [Row(row["step"], row["seconds"], tuple(row["bpp"])) for row in record]


def _copy(values: dict[str, Tensor], model: nn.Module) -> None:
    """Values into a model's parameters, in place: the update keeps them where they lie."""
    for name, parameter in model.named_parameters():
        parameter.data.copy_(values[name])


def _as_tensor(stored: NDArray[np.float16]) -> Tensor:
    """Stored latents as the network takes them."""
    return torch.from_numpy(stored.astype(np.float32)).contiguous(memory_format=torch.channels_last)
