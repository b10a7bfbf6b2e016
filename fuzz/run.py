"""Runs a target of `targets` under atheris, libFuzzer for Python:  python fuzz/run.py container|decode [libFuzzer's options]."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import atheris

with atheris.instrument_imports(include=["hpcm_codec"]):
    import targets

import torch


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in targets.TARGETS:
        sys.exit(f"usage: python fuzz/run.py {'|'.join(targets.TARGETS)} [CORPUS...] [-max_total_time=S ...]")
    target = targets.TARGETS[sys.argv.pop(1)]
    torch.set_num_threads(1)
    targets.codec()  # made before the clock of the first input starts
    atheris.Setup(sys.argv, lambda data: target(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
