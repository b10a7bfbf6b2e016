"""`train --stretch N`: one call's share of the training, continued from the last stretch; the averaged weights go into the output folder.

All stretches are one run of `hpcm train run` with one schedule in minutes. Each stretch computes the length of the run anew, from the
time that was really trained, so that the rate reaches zero when the last stretch ends. A run may begin anew from averaged weights
(because the machine was replaced by another one, or the loss diverged). Its own clock then starts at zero, `Position.offset` is the time
trained before, and the schedule is shifted by it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcm_codec.errors import HpcmError
from lease.choosing import keep_what_came
from lease.machine import (
    ROOT,
    BareMachineError,
    Clock,
    Row,
    end,
    environment,
    home,
    out,
    pack_command,
    require_pictures,
    rows_of,
    run_for,
    train_command,
    use_here,
)
from lease.plan import LEASE, Choice, Plan

WEIGHTS = "weights.safetensors"
UNDECAYED = "undecayed.safetensors"  # the last weights saved before the rate fell: the start of further training
USUAL_ROWS, FEWEST_ROWS = 40, 5  # rows of metrics whose median is the usual loss; at least so many
PROVEN_ROWS = 3  # good rows after which saved weights count as good
MOST_RESTARTS = 2
SHORTEST = 1.0  # seconds; the training is not started for less


@dataclass(frozen=True)
class Position:
    """offset: seconds trained before this run's own clock began; rate_factor: of the peak, halved when the loss diverges; start: the
    weights that the run begins with, a file or its pieces' common name.
    """

    offset: float = 0.0
    rate_factor: float = 1.0
    start: str = ""

    def write(self) -> None:
        (home() / "position.json").write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls) -> Position:
        path = home() / "position.json"
        return cls(**json.loads(path.read_text())) if path.exists() else cls()


@dataclass(frozen=True)
class Length:
    """Settings of `hpcm train run`: minutes of the run's own clock, and the share of them at which the rate begins to fall."""

    minutes: float
    decay_start: float


def schedule(plan: Plan, done: float, this: float, stretches_after: int, offset: float) -> Length:
    """The schedule of a run whose clock began at `offset` seconds of the whole training.

    done: seconds trained so far, `offset` included; this: seconds of this stretch; every later one adds the `training_seconds` of `plan`.
    """
    everything = done + this + stretches_after * plan.training_seconds
    own = everything - offset
    falls_at = (plan.decay_start * everything - offset) / own
    return Length(own / 60, min(0.999, max(0.0, falls_at)))


def blown_up(rows: list[Row], times: float) -> bool:
    """Whether the training has diverged: the last row's loss is not finite, or more than `times` the usual one."""
    if not rows:
        return False
    if not math.isfinite(rows[-1]["loss"]):
        return True
    before = [row["loss"] for row in rows[-1 - USUAL_ROWS : -1]]
    return len(before) >= FEWEST_ROWS and rows[-1]["loss"] > times * statistics.median(before)


def record_of(weights: Path) -> dict[str, Any]:
    """The training record of a run's weights, without loading them."""
    from safetensors import safe_open

    with safe_open(weights, "numpy") as file:
        found: dict[str, Any] = json.loads(file.metadata()["training"])
    return found


class Stretch:
    """One call's training."""

    def __init__(self, plan: Plan, number: int, of: int, seconds: float | None = None) -> None:
        self.plan, self.number, self.of = plan, number, of
        self.clock = Clock(plan.stretch_seconds if seconds is None else seconds)
        self.run, self.good, self.pending = home() / "run", home() / "good.safetensors", home() / "pending.safetensors"
        self.position = Position.read()
        self.asked = False  # whether SIGTERM was received
        self.restarts = 0
        self.choice = Choice(plan.batches[0], plan.optimisers[0])

    def train(self) -> None:
        """Raises BareMachineError where results of earlier calls are missing, HpcmError where the training fails."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked", True))
        require_pictures(self.plan)
        keep_what_came()
        self._find_beginning()
        if (command := pack_command()) is not None and not run_for(command, self.plan, 90, self.clock):
            raise HpcmError("the pictures could not be packed", advice="see the message above")
        print(f"stretch {self.number} of {self.of}: {self.choice}, {self._done():.0f} s trained before", flush=True)
        ended = self._train_once()
        while ended == "blown up" and self.restarts < MOST_RESTARTS:
            self.restarts += 1
            self._go_back()
            ended = self._train_once()
        if ended == "blown up":
            self._go_back()  # the good weights are returned, and a later stretch begins with them
        self._bring_out(ended)

    def _find_beginning(self) -> None:
        """Find the run to continue, or the initial weights: those returned by an earlier stretch, or those of `prepare`."""
        back = LEASE / "back"
        chosen = [path for path in (home() / "choice.json", back / "choice.json") if path.exists()]
        if chosen:
            self.choice = Choice.read(chosen[0])
        else:
            print("NOTE: no choice of settings is here; the plan's first ones are taken")
        if (self.run / "state.pt").exists() or self.position.start:
            return
        start = home() / "start" / "start.safetensors"
        figures = _figures(back / "figures.jsonl")
        if figures and any(back.glob(f"{WEIGHTS}*")):
            shutil.copytree(back, home() / "back", dirs_exist_ok=True)
            shutil.copy(back / "figures.jsonl", home() / "figures.jsonl")
            self.choice.write(home() / "choice.json")
            self.position = Position(figures[-1]["seconds"], figures[-1]["rate_factor"], str(home() / "back" / WEIGHTS))
            print(f"NOTE: a new run, from the weights that came back after {self.position.offset:.0f} s of training")
        elif self.number > 1:
            raise BareMachineError(
                "this machine has no run to go on with, and no weights that came back were carried",
                advice="carry .lease/back; where nothing has come back, give `train --stretch 1 --of` with the stretches that are left",
            )
        elif not any(start.parent.glob(f"{start.name}*")):
            raise BareMachineError("this machine has no weights to begin with", advice="carry .lease/start")
        else:
            self.position = Position(start=str(start))
        self.position.write()

    def _done(self) -> float:
        """Seconds of training so far, all runs together."""
        weights = self.run / WEIGHTS
        return self.position.offset + (float(record_of(weights)["seconds"]) if weights.exists() else 0.0)

    def _train_once(self) -> str:
        """One process of `hpcm train run`. Returns "finished", "cut" (out of time), "asked to end" (SIGTERM) or "blown up" (diverged)."""
        starting = max([self.plan.start_seconds, *(row["start_seconds"] for row in _figures(home() / "figures.jsonl"))])
        this = min(self.clock.left - starting - self.plan.end_seconds, self.plan.training_seconds)
        if this < SHORTEST:
            raise HpcmError(
                f"only {self.clock.left:.0f} s are left, too few to train", advice="go on with the next call"
            )
        length = schedule(self.plan, self._done(), this, self.of - self.number, self.position.offset)
        start, factor = Path(self.position.start), self.position.rate_factor
        command = train_command(self.plan, self.choice, self.run, start, length.minutes, length.decay_start, factor)
        print(
            f"trains until minute {length.minutes:.2f}, falling from {100 * length.decay_start:.0f}% of it", flush=True
        )
        before, began = self._done() - self.position.offset, time.monotonic()
        self.start_seconds = starting
        self.run.mkdir(parents=True, exist_ok=True)
        rows_before, saved, proven_at = len(rows_of(self.run)), _time_of(self.run / WEIGHTS), 0
        process = subprocess.Popen(command, env=environment(self.plan), cwd=ROOT)
        while process.poll() is None:
            time.sleep(0.2)
            rows = rows_of(self.run)[rows_before:]
            its_share = self.number < self.of and bool(rows) and rows[-1]["seconds"] - before >= this
            if self.asked or its_share or self.clock.left < self.plan.end_seconds:
                end(process)
                return "asked to end" if self.asked else "cut"
            if rows and self.start_seconds == starting:
                self.start_seconds = max(1.0, time.monotonic() - began - (rows[-1]["seconds"] - before))
            if blown_up(rows, self.plan.blown_up):
                process.kill()  # not SIGTERM, after which it would save
                process.wait()
                return "blown up"
            if proven_at and len(rows) >= proven_at:
                self.pending.replace(self.good)
                proven_at = 0
            if not proven_at and _time_of(self.run / WEIGHTS) != saved:
                saved, proven_at = _time_of(self.run / WEIGHTS), len(rows) + PROVEN_ROWS
                shutil.copy(self.run / WEIGHTS, self.pending)
                if not rows or rows[-1]["progress"] < length.decay_start:
                    shutil.copy(self.run / WEIGHTS, home() / UNDECAYED)
        if self.asked:
            return "asked to end"
        if process.returncode:
            raise HpcmError(f"the training ended with status {process.returncode}", advice="see its message above")
        return "finished"

    def _go_back(self) -> None:
        """Replace a run that diverged by its last good weights, with half the rate and the clock at the time of these weights."""
        kept = home() / f"blown-{time.time_ns()}"
        self.run.rename(kept)
        self.run.mkdir()
        if self.good.exists():
            at = self.position.offset + float(record_of(self.good)["seconds"])
            start = str(self.good.replace(home() / f"good-{time.time_ns()}.safetensors"))
        else:
            at, start = self.position.offset, self.position.start
        self.position = Position(at, self.position.rate_factor / 2, start)
        self.position.write()
        print(
            f"NOTE: the loss blew up; back to the weights of second {at:.0f}, at {self.position.rate_factor:g} of the rate"
        )

    def _bring_out(self, ended: str) -> None:
        """Write the averaged weights in pieces, the score and a line of figures into the folder that is downloaded."""
        use_here(self.plan)
        from hpcm_codec.training.light import export_light

        trained = self.run / WEIGHTS
        record = record_of(trained) if trained.exists() else {}
        source = str(trained) if trained.exists() else self.position.start
        pieces = export_light(source, out() / WEIGHTS, int(self.plan.piece_mib * 2**20))
        if self.number == self.of and (home() / UNDECAYED).exists():
            pieces += export_light(str(home() / UNDECAYED), out() / UNDECAYED, int(self.plan.piece_mib * 2**20))
        rows = rows_of(self.run)
        figures = {
            "stretch": self.number,
            "of": self.of,
            "ended": ended,
            "seconds": round(self.position.offset + record.get("seconds", 0.0), 1),
            "steps": record.get("steps", 0),
            "offset": self.position.offset,
            "rate_factor": self.position.rate_factor,
            "start_seconds": round(self.start_seconds, 1),
            "restarts": self.restarts,
            "choice": str(self.choice),
            "last_row": rows[-1] if rows else None,
            "files": [piece.name for piece in pieces],
        }
        self.choice.write(out() / "choice.json")
        _write_figures(figures)  # before the score, which may take too long
        if rows:
            shutil.copy(self.run / "metrics.jsonl", out() / "metrics.jsonl")
        if (home() / "checks" / "valid").is_dir():
            figures["score"] = round(self._score(source), 4)
            _write_figures(figures, again=True)
        print(json.dumps(figures))

    def _score(self, source: str) -> float:
        import torch

        from hpcm_codec.training.light import load_weights
        from hpcm_codec.training.scoring import middles, score

        model = load_weights(source).build_model().to(self.plan.device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return score(model, middles(home() / "checks" / "valid")).value


def _write_figures(figures: dict[str, Any], again: bool = False) -> None:
    """Add a line to the figures on this machine, or replace the last one, and copy all of them to the output folder."""
    kept = _figures(home() / "figures.jsonl")
    lines = [*(kept[:-1] if again else kept), figures]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for folder in (home(), out()):
        (folder / "figures.jsonl").write_text(text)


def _figures(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _time_of(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
