"""The calls of a lease in their order: what the device tool is given, what to look at after each, and what to do when one fails."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from hpcm_codec.errors import HpcmError
from lease.plan import Plan

LONGEST_COMMAND, LONGEST_CALL, MOST_PATHS = 2000, 600, 8  # the device tool's limits
SLACK = 30.0  # seconds from a command's own limit to the tool's

INTRODUCTION = """\
# The calls of this lease

One after the other, without a pause: the machine goes back after 30 idle seconds, and all that was staged is lost with it.
Each is a call of the device tool `run` with exactly this command, `timeout_s` and `carry`. Why, and what comes after:
docs/gpu-lease.md.

Before the last `train` call look at `budget_left_s` in the reply before it. Where it is less than the call's `timeout_s` and a
minute, add `--seconds S` to the command, S a minute less than what is left, and leave `check` out.
"""
LOST_MACHINE = """\
## A lost machine

A call answers `this machine lacks …`, or the tool that the machine was given or taken back: the new one is bare, and warm from
now on. Make sure that what came back is kept (`bring`), give all `stage` calls again at once, then this one in place of the
`train` call that is due: N its number, M how many stretches the time still allows, those before it counted (in the last one the
rate falls). Where nothing has come back yet: the `stage` calls, then `choose`, then on as usual.
"""


@dataclass(frozen=True)
class Call:
    """name: as in CALLS.md; carry: ignored paths that are uploaded; timeout_s: the tool's limit; look, fails: sentences."""

    name: str
    command: str
    timeout_s: int
    carry: tuple[str, ...]
    look: str
    fails: str

    def __post_init__(self) -> None:
        if len(self.command) > LONGEST_COMMAND or self.timeout_s > LONGEST_CALL or len(self.carry) > MOST_PATHS:
            raise HpcmError(f"the call {self.name} does not fit the device tool's limits")


def _call(name: str, arguments: str, seconds: float, carry: tuple[str, ...], look: str, fails: str) -> Call:
    command = f"set -o pipefail; python3 -u tools/gpu_lease.py {arguments} 2>&1 | tee $OUT/log.txt"
    paths = tuple(f".lease/{path}" for path in ("plan", *carry))
    return Call(name, command, min(LONGEST_CALL, round(seconds + SLACK)), paths, look, fails)


def calls_of(plan: Plan) -> list[Call]:
    """The calls of a lease that keeps one machine, in order."""
    stages = [
        _call(
            f"stage {number}",
            f"stage {number}",
            90,
            (*(("wheels",) if number == 1 else ()), f"part-{number}"),
            f"`part-{number} is there`"
            + ("; `installed:` with four wheels" if number == 1 else "")
            + ("; `all parts are there`" if number == len(plan.parts) else ""),
            "Make it again.",
        )
        for number in range(1, len(plan.parts) + 1)
    ]
    choose = _call(
        "choose",
        "choose",
        plan.choose_seconds,
        ("start", "checks"),
        "`CHOSEN:` at the end; the table above it: crops in a second, and how much of a step waits for data (above 20%: "
        "more `--loaders` next time); `tests passed`. `bring`, as after `train`.",
        "Failed GPU tests of Bi-WKV4: do not train, go to `check`. Other tests alone: train. `no way of training works`: give the "
        "machine back.",
    )
    trains = [
        _call(
            f"train {number}",
            f"train --stretch {number}",
            plan.stretch_seconds,
            (),
            f"The line of figures at the end: `ended` is `{'finished' if number == plan.stretches else 'cut'}`, `score` has fallen, "
            "`rate_factor` is 1 and `restarts` 0. Then at once "
            "`(python tools/gpu_lease.py bring FILES_AT > .lease/bring.txt 2>&1 &); sleep 3; cat .lease/bring.txt`: "
            "it copies first, says that the next call may begin, and checks the weights while that runs. "
            "Look at .lease/bring.txt again later.",
            "`this machine lacks`: it was lost, see below. Anything else: the same call again goes on from the last save "
            f"(every {plan.save_minutes:g} minutes).",
        )
        for number in range(1, plan.stretches + 1)
    ]
    check = _call(
        "check",
        "check",
        plan.check_seconds,
        ("wheels", "checks"),
        "Every `read alike` is true; Bi-WKV4 beside its floor; the table of stages. check.json and bench.json come back.",
        "`symbols differ`: keep check.json, it is a bug to look into here. A part that failed leaves the others valid.",
    )
    return [*stages, choose, *trains, check]


def calls_after_a_loss(plan: Plan, stretch: int, of: int) -> list[Call]:
    """The calls that continue with a stretch on a new machine, from what `bring` has kept here."""
    stages = [call for call in calls_of(plan) if call.name.startswith("stage")]
    again = _call(
        f"train {stretch} again",
        f"train --stretch {stretch} --of {of}",
        plan.stretch_seconds,
        ("back", "checks"),
        "`NOTE: a new run, from the weights that came back`, then as above.",
        "As above.",
    )
    return [*stages, again]


def write_calls(plan: Plan, folder: Path, sizes: dict[str, float]) -> None:
    """Write CALLS.md for people and calls.json for programs. sizes: MiB that are uploaded with each call, by its name."""
    calls = calls_of(plan)
    (folder / "calls.json").write_text(json.dumps([dataclasses.asdict(call) for call in calls], indent=1) + "\n")
    lines = [INTRODUCTION]
    for number, call in enumerate(calls, 1):
        lines += _section(f"{number}. {call.name}", call, sizes.get(call.name))
    again = calls_after_a_loss(plan, 2, 3)[-1]
    again = dataclasses.replace(again, command=again.command.replace("--stretch 2 --of 3", "--stretch N --of M"))
    lines += [LOST_MACHINE, *_section("", again, sizes.get("back"))[2:]]
    (folder / "CALLS.md").write_text("\n".join(lines).rstrip() + "\n")


def _section(title: str, call: Call, size: float | None) -> list[str]:
    travels = "" if size is None else f" ({size:.1f} MiB travel)"
    return [
        f"## {title}",
        "",
        "```",
        f"command: {call.command}",
        f"timeout_s: {call.timeout_s}",
        f"carry: {json.dumps(list(call.carry))}",
        "```",
        "",
        f"- Look at{travels}: {call.look}",
        f"- If it fails: {call.fails}",
        "",
    ]
