"""`choose`: compiles the operators, runs the tests that need a GPU, times some steps with each setting, and selects the best one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

from hpcm_codec.errors import HpcmError
from lease.machine import (
    ROOT,
    Clock,
    end,
    environment,
    home,
    hpcm,
    out,
    pack_command,
    require_pictures,
    rows_of,
    run_for,
    train_command,
)
from lease.plan import LEASE, Choice, Plan

ENOUGH = 0.85  # a smaller batch is selected from this share of the best one's crops on: it makes more steps of them
COMPILED_GAIN = 1.05  # the least gain in crops for which steps are compiled, the time of compiling included
FEWEST_ROWS = 3


@dataclass(frozen=True)
class Trial:
    """crops_per_second: once it runs, 0 if it does not; start_seconds: from the command to the first row; waited: share of a step for
    data; loss: of the last row; note: what went wrong.
    """

    choice: Choice
    crops_per_second: float = 0.0
    start_seconds: float = 0.0
    waited: float = 0.0
    loss: float = 0.0
    note: str = ""

    def crops_in(self, seconds: float) -> float:
        """Crops that a stretch of so many seconds trains on."""
        return self.crops_per_second * max(0.0, seconds - self.start_seconds)


def choose(plan: Plan) -> None:
    """Raises BareMachineError where pictures are missing, HpcmError where training works with no setting."""
    clock = Clock(plan.choose_seconds)
    require_pictures(plan)
    keep_what_came()
    command = pack_command()
    packing = None if command is None else subprocess.Popen(command, env=environment(plan), cwd=ROOT)
    run_for(hpcm("doctor", *plan.doctor, "--device", plan.device), plan, 100, clock)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plan.tests]
    tests_passed = run_for(pytest, plan, 60, clock)
    if packing is not None and packing.wait():
        raise HpcmError("the pictures could not be packed", advice="see the message above")
    trials = run_trials(plan, clock)
    choice = best(plan, trials)
    choice.write(home() / "choice.json")
    choice.write(out() / "choice.json")
    (out() / "trials.json").write_text(json.dumps([dataclasses.asdict(trial) for trial in trials], indent=1) + "\n")
    for trial in trials:
        step = 1e3 * trial.choice.batch / max(1e-9, trial.crops_per_second)
        print(
            f"{trial.choice!s:<40} {trial.crops_per_second:8.1f} crops/s  {step:8.1f} ms a step  "
            f"first row after {trial.start_seconds:.1f} s  waits for data {100 * trial.waited:.0f}%  "
            f"loss {trial.loss:.3f}  {trial.note}"
        )
    print(f"tests {'passed' if tests_passed else 'FAILED: look before training'}; {clock.left:.0f} s were left")
    print(f"CHOSEN: {choice}, rate {plan.learning_rate:g}")


def keep_what_came() -> None:
    """Keep the initial weights and the pictures for scoring, for later calls that do not carry them."""
    for name in ("start", "checks"):
        if (LEASE / name).is_dir():
            shutil.copytree(LEASE / name, home() / name, dirs_exist_ok=True)


def run_trials(plan: Plan, clock: Clock) -> list[Trial]:
    """Batches first, as CUDA graphs where those work, then the compiled step and the other optimisers at the batch that has won.

    As far as the time goes.
    """
    usual, limit = plan.optimisers[0], plan.trial_start_seconds
    trials, graph = [], plan.cuda_graph
    for batch in plan.batches:
        trials.append(run_trial(plan, Choice(batch, usual, cuda_graph=graph), limit, clock))
        if graph and not trials[-1].crops_per_second:
            graph = False
            trials.append(run_trial(plan, Choice(batch, usual), limit, clock))
    batch = best(plan, trials).batch
    if plan.compile:  # first, as it may gain most
        compiled = Choice(batch, usual, compile=True, cuda_graph=graph)
        trials.append(run_trial(plan, compiled, plan.compile_seconds, clock))
    others = [Choice(batch, other, cuda_graph=graph) for other in plan.optimisers[1:]]
    return trials + [run_trial(plan, choice, limit, clock) for choice in others]


def run_trial(plan: Plan, choice: Choice, start_seconds: float, clock: Clock) -> Trial:
    """Train until enough steps are measured; the first row is left out, as it includes work that happens once."""
    if clock.left < plan.trial_seconds + 10:
        return Trial(choice, note="no time was left")
    folder = home() / "trials" / str(choice).replace(", ", "-").replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    quick = dataclasses.replace(plan, log_every=min(5, plan.log_every), save_minutes=60)
    command = train_command(quick, choice, folder, home() / "start" / "start.safetensors", 1000, 1.0)
    began, first_row, note = time.monotonic(), 0.0, ""
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment(plan), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.1)
            rows, spent = rows_of(folder), time.monotonic() - began
            first_row = first_row or (spent if rows else 0.0)
            if len(rows) >= FEWEST_ROWS and rows[-1]["seconds"] - rows[0]["seconds"] >= plan.trial_seconds:
                break
            if spent > (start_seconds if not rows else 1.5 * (first_row + plan.trial_seconds) + 5) or clock.left < 8:
                note = "cut: too slow"
                break
        if process.poll() is None:
            rows = rows_of(folder)  # before the last save adds none
            end(process)
        else:
            rows, note = [], "failed: " + (folder / "log.txt").read_text().strip().rpartition("\n")[2][:200]
    if len(rows) < FEWEST_ROWS:
        return Trial(choice, note=note or "cut: too slow")
    steps, seconds = rows[-1]["step"] - rows[0]["step"], rows[-1]["seconds"] - rows[0]["seconds"]
    waited = sum(row["waited"] for row in rows[1:]) / (len(rows) - 1) * steps / max(1e-9, seconds)
    return Trial(choice, steps * choice.batch / max(1e-9, seconds), first_row, min(1.0, waited), rows[-1]["loss"], note)


def best(plan: Plan, trials: list[Trial]) -> Choice:
    """What to train with after these trials; raises HpcmError when none of the plain ones worked.

    The smallest batch that is nearly as fast as the fastest; compiled, if that gains more than it costs; another optimiser, if its steps do
    not cost too much.
    """
    usual = [
        t for t in trials if t.crops_per_second and t.choice.optimiser == plan.optimisers[0] and not t.choice.compile
    ]
    if not usual:
        notes = "; ".join(f"{trial.choice}: {trial.note}" for trial in trials)
        raise HpcmError(
            f"no way of training works here ({notes})", advice="give the machine back and look into it here"
        )
    fastest = max(trial.crops_in(plan.stretch_seconds) for trial in usual)
    plain = min(
        (t for t in usual if t.crops_in(plan.stretch_seconds) >= ENOUGH * fastest), key=lambda trial: trial.choice.batch
    )
    alike = [trial for trial in trials if trial.crops_per_second and trial.choice.batch == plain.choice.batch]
    compiled = any(
        t.choice.compile and t.crops_in(plan.stretch_seconds) > COMPILED_GAIN * plain.crops_in(plan.stretch_seconds)
        for t in alike
    )
    others = [
        trial
        for trial in alike
        if trial.choice.optimiser != plan.optimisers[0]
        and trial.crops_per_second * plan.dearest_step >= plain.crops_per_second
    ]
    optimiser = max(others, key=lambda trial: trial.crops_per_second).choice.optimiser if others else plan.optimisers[0]
    return Choice(plain.choice.batch, optimiser, compiled, plain.choice.cuda_graph)
