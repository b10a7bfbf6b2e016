"""The good states of a run, two of them: RUN/state.pt, the newest, and RUN/state.before.pt, the good one before it.

What makes a state good is decided elsewhere (`guard`); nothing else is ever written here.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.system.files import write_atomically
from hpcm_codec.training.settings import TrainSettings

NEWEST, BEFORE = "state.pt", "state.before.pt"
NAMES = ("config", "settings", "step", "seconds", "skipped", "model", "average", "average_updates", "optimiser")
TRIES = 3  # times that a run goes back to one state before it takes the one before
LOWER_RATE = "lower --learning-rate, and give the same command again"

State = dict[str, Any]
Say = Callable[[str], None]


class GoodStates:
    """Reads and writes them, and chooses to which one a run goes back. Every process has one and makes the same calls.

    step: of the state that was read or written last, None before.
    say:  called with a line when a state was skipped.
    """

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder, self._say = folder, say
        self.step: int | None = None
        self._returns = 0  # since the last one was written
        self._passed_over = False  # the newest one will not be kept as the one before

    def exist(self) -> bool:
        return any((self.folder / name).exists() for name in (NEWEST, BEFORE))

    def newest(self) -> tuple[State, Path]:
        """The newest state that can be read, and its file; raises FileError when none can."""
        newest, before = self.folder / NEWEST, self.folder / BEFORE
        try:
            if newest.exists() and not self._passed_over:
                return self._read(newest), newest
        except FileError as error:
            if not before.exists():
                raise
            self._say(f"{newest}: {error.reason}; taking {before.name}")
        self._passed_over = True
        return self._read(before), before

    def pass_over(self) -> bool:
        """Take the state before the newest one from now on; False when there is none."""
        if self._passed_over or not (self.folder / BEFORE).exists():
            return False
        self._passed_over = True
        return True

    def go_back(self) -> State:
        """The state from which a run with diverged weights continues: the newest `TRIES` times, then the one before as often.

        Raises HpcmError when neither helped.
        """
        self._returns += 1
        if self._returns > TRIES and not self._passed_over:
            self._passed_over, self._returns = True, 1
        if self._returns > TRIES or (self._passed_over and not (self.folder / BEFORE).exists()):
            reason = f"the run diverges again and again after its good state of step {self.step}"
            raise HpcmError(reason, file=self.folder, advice=LOWER_RATE)
        return self.newest()[0]

    def write(self, state: State, here: bool) -> None:
        """Make a good state the newest one; here: False in all processes but the one that writes.

        If the process is killed in between, only the one before may be left; it is then the newest.
        """
        if here:
            newest = self.folder / NEWEST
            if newest.exists() and not self._passed_over and state["step"] != self.step:
                newest.replace(self.folder / BEFORE)
            write_atomically(newest, lambda file: torch.save(state, file), overwrite=True)
        self.step, self._returns, self._passed_over = state["step"], 0, False

    def _read(self, path: Path) -> State:
        try:
            # Our own file, and read without running anything that is pickled in it.
            state = torch.load(path, map_location="cpu", weights_only=True)
            missing = [name for name in NAMES if name not in state]
            if missing:
                raise KeyError(missing[0])
            self.step = state["step"]
        except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise FileError("damaged", file=path, advice="start again from weights.safetensors with --from") from error
        return state


def refuse_another_run(state: State, path: Path, config: ModelConfig, settings: TrainSettings) -> None:
    """Raise FileError for the state of another model or optimiser: a run keeps both."""
    if ModelConfig.from_json(state["config"]) != config:
        raise FileError(f"{path}: this run trains another model; choose another folder")
    saved = TrainSettings.from_saved(state["settings"])
    if saved.optimiser != settings.optimiser:
        raise FileError(
            f"this run uses the optimiser {saved.optimiser}", file=path, advice="name it, or choose another folder"
        )
    for part in ("patch", "transform"):
        before, now = (getattr(s, f"{part}_rate_factor") for s in (saved, settings))
        if (before == 1) != (now == 1):
            reason = f"this run's {part} rate factor is {before:g}; it cannot change from 1 or to 1"
            raise FileError(reason, file=path, advice=f"give it with --{part}-rate-factor, or choose another folder")
