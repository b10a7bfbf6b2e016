"""Which context model needs the fewest bits: Phases 1 to 4 and attention, trained alike. docs/phases.md has the results.

    python tools/compare_phases.py latents FOLDER --data PACK --valid DIR
    python tools/compare_phases.py train FOLDER --until STEPS
    python tools/compare_phases.py report FOLDER --curve RESULTS.json -o docs/results/phases

Each command has --help. `train` goes on where it was; all runs take their first stretch before one takes its second, so a report can
be made at any time. A worker is one process with one thread. Errors are one line; the exit status is that of the error.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT)]

from hpcm_codec.errors import HpcmError, UsageError  # noqa: E402
from one_line_errors import status_of  # noqa: E402
from phases.variants import VARIANTS  # noqa: E402


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(dest="name", required=True)
    latents = commands.add_parser("latents", help="compute and store the latents of all crops")
    latents.add_argument("--data", type=Path, required=True, help="a file of `hpcm train pack`")
    latents.add_argument("--valid", type=Path, required=True, help="the validation pictures")
    latents.add_argument("--crops", type=int, default=12000, help="training crops of 256×256 (default: 12000)")
    train = commands.add_parser("train", help="train all variants in turn, a stretch each")
    train.add_argument("--variants", type=_names, default=tuple(VARIANTS), help="default: all")
    train.add_argument("--seeds", type=_numbers, default=(0, 1), help="default: 0,1")
    train.add_argument("--stretch", type=int, default=250, help="steps between two measurements (default: 250)")
    train.add_argument("--until", type=int, default=2000, help="steps of every run (default: 2000)")
    train.add_argument("--minutes", type=float, default=180.0, help="begin no stretch after that long (default: 180)")
    train.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="default: one for each core")
    stretch = commands.add_parser("stretch", help="one stretch of one run, as `train` starts it")
    stretch.add_argument("--variant", choices=VARIANTS, required=True)
    stretch.add_argument("--seed", type=int, required=True)
    stretch.add_argument("--steps", type=int, required=True)
    report = commands.add_parser("report", help="tables and plot")
    report.add_argument("--curve", type=Path, required=True, help="results of `hpcm eval`: what a bit is worth in dB")
    report.add_argument(
        "-o", "--output", type=Path, required=True, help="path without a suffix: .md, .png and .json are written"
    )
    for command in (latents, train, stretch, report):
        command.add_argument("folder", type=Path, help="where latents and runs are")
    for command in (latents, train, stretch):
        command.add_argument("--model", default="phase1-lite", help="whose transforms, gains and hyperprior")
    return whole


def train(options: argparse.Namespace) -> None:
    """Start a process for every stretch, as many at a time as there are workers."""
    from phases.training import read_rows, rows_file

    unknown = [name for name in options.variants if name not in VARIANTS]
    if unknown:
        raise UsageError(f"no variant is called {unknown[0]!r}", advice=f"there are {', '.join(VARIANTS)}")
    end = time.monotonic() + 60 * options.minutes
    runs = list(itertools.product(options.seeds, options.variants))
    busy: set[tuple[int, str]] = set()
    lock = Lock()

    def steps_of(run: tuple[int, str]) -> int:
        rows = read_rows(rows_file(options.folder, run[1], run[0]))
        return rows[-1].step if rows else 0

    def work() -> None:
        while time.monotonic() < end:
            with lock:
                waiting = [run for run in runs if run not in busy and steps_of(run) < options.until]
                if not waiting:
                    return
                run = min(waiting, key=steps_of)
                busy.add(run)
            seed, variant = run
            command = [sys.executable, __file__, "stretch", str(options.folder), "--model", options.model]
            command += ["--variant", variant, "--seed", str(seed), "--steps", str(options.stretch)]
            status = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
            if status:
                raise HpcmError(f"the stretch of {variant} with seed {seed} ended with status {status}")
            busy.discard(run)

    with ThreadPoolExecutor(options.workers) as pool:
        for done in [pool.submit(work) for _ in range(options.workers)]:
            done.result()


def run(options: argparse.Namespace) -> None:
    if options.name == "train":
        train(options)
        return
    if options.name == "report":
        from phases.report import write_report

        write_report(options.folder, options.curve, options.output)
        return
    import torch

    from hpcm_codec.training.light import load_weights

    trained = load_weights(options.model)
    if options.name == "latents":
        from hpcm_codec.training.data import PackedPictures
        from phases.latents import store

        store(trained.build_model(), PackedPictures(options.data), options.valid, options.folder, options.crops)
        return
    from phases.training import Run

    torch.set_num_threads(1)
    one = Run(options.folder, options.variant, options.seed, trained)
    one.stretch(options.steps)
    row = one.rows[-1]
    rates = "  ".join(f"{bpp:.4f}" for bpp in row.bpp)
    print(f"{options.variant} seed {options.seed}: step {row.step}, {row.seconds:.0f} s, {rates} bpp", flush=True)


def main() -> int:
    options = parser().parse_args()
    return status_of("compare_phases", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
