"""Thirty minutes on a leased GPU, one command a call; all calls can be rehearsed on the CPU. The recipe: docs/gpu-lease.md.

Here, to fill .lease/:           python tools/gpu_lease.py prepare --pictures DIR --valid DIR --checks DIR --weights FILE [--rehearse]
There, as .lease/CALLS.md says:  python3 tools/gpu_lease.py stage N | choose | train --stretch N [--of M] [--seconds S] | check
Here, after each stretch:        python tools/gpu_lease.py bring FILES_AT
Here, in the end:                python tools/gpu_lease.py finish [--calibrate DIR] [--evaluate DIR]

Errors are one line; the exit status is that of the error.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT)]

from hpcm_codec.errors import UsageError  # noqa: E402
from lease.plan import LEASE, REHEARSAL, Plan  # noqa: E402
from one_line_errors import status_of  # noqa: E402


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(dest="name", required=True)
    prepare = commands.add_parser("prepare", help="fill .lease/ with what travels and the calls")
    prepare.add_argument("--pictures", type=Path, required=True, help="the training pictures")
    prepare.add_argument("--valid", type=Path, required=True, help="the validation pictures")
    prepare.add_argument("--checks", type=Path, required=True, help="the folder of the Kodak pictures")
    prepare.add_argument("--weights", required=True, help="where training begins: a checkpoint, a run, or pieces")
    prepare.add_argument("--wheels", type=Path, help="a folder of wheels to take along (default: pip fetches ours)")
    prepare.add_argument(
        "--rehearse", action="store_true", help="the same on this machine, in seconds instead of minutes"
    )
    prepare.add_argument("--stretches", type=int, help="calls that train")
    prepare.add_argument(
        "--batches", type=lambda text: tuple(map(int, text.split(","))), help="crops in a step to try: 32,64"
    )
    prepare.add_argument(
        "--optimisers", type=lambda text: tuple(text.split(",")), help="to try, the usual one first: adamw,muon"
    )
    prepare.add_argument("--learning-rate", type=float, help="the peak")
    prepare.add_argument("--smallest-scale", type=float, help="random shrinking of the pictures, down to this")
    prepare.add_argument("--loaders", type=int, help="processes that draw crops")
    stage = commands.add_parser("stage", help="one part of the pictures to the machine's disk")
    stage.add_argument("number", type=int)
    commands.add_parser("choose", help="build, test, time a few steps of each way to train")
    train = commands.add_parser("train", help="one stretch of the training")
    train.add_argument("--stretch", type=int, required=True, metavar="N")
    train.add_argument("--of", type=int, metavar="M", help="stretches in all (default: as planned)")
    train.add_argument("--seconds", type=float, metavar="S", help="from start to end (default: as planned)")
    commands.add_parser("check", help="symbols, speed, Bi-WKV4")
    bring = commands.add_parser("bring", help="check and keep what came back")
    bring.add_argument("source", type=Path, metavar="FILES_AT")
    finish = commands.add_parser("finish", help="join, export and measure what came back")
    finish.add_argument("--calibrate", type=Path, help="training pictures: export as shipped, with an exact profile")
    finish.add_argument("--evaluate", help="a data set or folder for `hpcm eval`")
    finish.add_argument("-q", "--qualities", help="of that")
    return whole


def run(options: argparse.Namespace) -> None:
    if options.name == "prepare":
        from lease.preparing import prepare

        names = ("stretches", "batches", "optimisers", "learning_rate", "smallest_scale", "loaders")
        given: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        if not options.rehearse and Path.cwd() != ROOT:
            raise UsageError(f"calls travel from {ROOT}", advice="prepare there")
        plan = dataclasses.replace(REHEARSAL if options.rehearse else Plan(), **given)
        prepare(plan, LEASE, options.pictures, options.valid, options.checks, options.weights, options.wheels)
        return
    if options.name == "bring":
        from lease.returning import bring

        bring(LEASE, options.source)
        return
    plan = Plan.read(LEASE)
    if options.name == "finish":
        from lease.returning import finish

        finish(LEASE, options.calibrate, options.evaluate, options.qualities)
    elif options.name == "stage":
        from lease.staging import stage

        stage(plan, options.number)
    elif options.name == "choose":
        from lease.choosing import choose

        choose(plan)
    elif options.name == "train":
        from lease.stretches import Stretch

        Stretch(plan, options.stretch, options.of or plan.stretches, options.seconds).train()
    else:
        from lease.checking import check

        check(plan)


def main() -> int:
    options = parser().parse_args()
    return status_of("gpu_lease", lambda: run(options))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing that a library left running may hold up a call
