"""The integer operators compiled in advance: a wheel has them for several instruction sets, and the best one that runs here is used.

With such a library a machine needs no compiler for the exact profile.
"""

from __future__ import annotations

import logging
import platform
import subprocess
from pathlib import Path

from hpcm_codec.ops.sources import INTEGER_FLAGS, SOURCES, Backend, source_digest, source_directory
from hpcm_codec.ops.toolchain import find_compiler, processor

logger = logging.getLogger("hpcm_codec.ops")

# The instruction sets that a wheel has the integer operators for, best first: what /proc/cpuinfo must name, and the compiler's flags.
LEVELS: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "avx512vnni": (
        frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"]),
        ("-march=x86-64-v4", "-mavx512vnni"),
    ),
    "avx2": (frozenset(["avx2", "bmi1", "bmi2", "fma", "f16c", "movbe", "abm"]), ("-march=x86-64-v3",)),
    "x86-64": (frozenset(), ("-march=x86-64",)),
}


def compiled_directory() -> Path:
    """Where a wheel has compiled libraries; a checkout has none."""
    return Path(__file__).resolve().parent / "compiled"


def shipped_name(level: str) -> str:
    """The file of the integer operators for an instruction set; any change of sources or flags changes it."""
    return f"integer-{level}-{source_digest('integer', (' '.join((*INTEGER_FLAGS, *LEVELS[level][1])),))}.so"


def shipped_library(backend: Backend) -> Path | None:
    """The best of the libraries that came with the program and that this machine can run; None where there is none."""
    folder = compiled_directory()
    if backend != "integer" or not folder.is_dir() or platform.machine() not in ("x86_64", "AMD64"):
        return None
    there = set(processor().split())
    for level, (needed, _) in LEVELS.items():
        if needed <= there and (found := folder / shipped_name(level)).is_file():
            return found
    return None


def compile_levels(target: Path) -> list[Path]:
    """Compile the integer operators for every instruction set in LEVELS that the compiler knows, into a folder; the files.

    No files where there is no compiler, or on other machines than x86-64: there a program compiles when it is first used.
    """
    compiler = find_compiler("integer")
    if compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        return []
    target.mkdir(parents=True, exist_ok=True)
    made = []
    for level, (_, flags) in LEVELS.items():
        output = target / shipped_name(level)
        plain = [flag for flag in INTEGER_FLAGS if not flag.startswith("-march")]
        command = [*compiler, *plain, *flags, "-static-libstdc++", "-static-libgcc"]
        source = source_directory() / SOURCES["integer"]
        done = subprocess.run([*command, str(source), "-o", str(output)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            made.append(output)
        else:
            logger.warning("hpcm: not compiled for %s: %s", level, done.stderr.strip()[-500:])
    return made
