"""Instructions that the C++ operators take, counted by valgrind's callgrind: a figure that no busy machine changes.

The operators are built for x86-64-v3 (AVX2) instead of this machine's processor: valgrind knows no AVX-512, and figures of different
machines can then be compared. Another compiler makes other instructions, so its name belongs to the figures.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from hpcm_codec.errors import HpcmError
from hpcm_codec.ops import build

# operator → the source file that defines it, and what the driver must be told
OPERATORS = {
    "integer_linear": ("integer_cpu.cpp", "integer", ()),
    "integer_depthwise": ("integer_cpu.cpp", "integer", ()),
    "integer_layer_norm": ("integer_cpu.cpp", "integer", ()),
    "integer_window_attention": ("integer_cpu.cpp", "integer", ()),
    "integer_bi_wkv": ("integer_cpu.cpp", "integer", ()),
    "biwkv4_forward_float32": ("biwkv4_cpu.cpp", "cpp", ("-DHPCM_BIWKV4",)),
}
DRIVER = Path(__file__).with_name("count_driver.cpp")
ARCHITECTURE = "x86-64-v3"
TIMEOUT = 600.0  # seconds, of the compiler and of valgrind


def missing() -> str | None:
    """What this machine lacks for counting, or None."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "instructions are counted on x86-64 only"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    return None if shutil.which("valgrind") else "valgrind is not installed"


def compiler_name() -> str:
    """The compiler whose instructions are counted, such as "g++ 12"."""
    version = _output(["g++", "-dumpversion"], "g++").strip()
    return f"g++ {version.partition('.')[0]}"


def instructions() -> dict[str, int]:
    """Instructions of one call of each of OPERATORS on fixed arguments (see count_driver.cpp), one thread.

    Raises HpcmError where something is missing or fails.
    """
    if (reason := missing()) is not None:
        raise HpcmError(reason)
    counts = {}
    with tempfile.TemporaryDirectory(prefix="hpcm-count-") as name:
        for operator, (source, flags_of, extra) in OPERATORS.items():
            program = Path(name) / Path(source).stem
            if not program.exists():
                _compile(source, flags_of, extra, program)
            counts[operator] = _count(program, operator, Path(name))
    return counts


def _compile(source: str, flags_of: str, extra: tuple[str, ...], program: Path) -> None:
    flags = [flag for flag in build.FLAGS[flags_of] if flag not in ("-shared", "-fPIC") and "-march" not in flag]
    sources = build.source_directory()
    files = [f"-I{sources}", str(DRIVER), str(sources / source)]
    _output(["g++", *flags, f"-march={ARCHITECTURE}", *extra, *files, "-o", str(program)], "the compiler")


def _count(program: Path, operator: str, folder: Path) -> int:
    command = ["valgrind", "--tool=callgrind", "--collect-atstart=no", f"--toggle-collect=hpcm_{operator}"]
    command += [f"--callgrind-out-file={folder / 'callgrind.out'}", str(program), operator]
    found = re.search(r"Collected\s*:\s*(\d+)", _output(command, f"counting {operator}"))
    if found is None or int(found[1]) == 0:
        raise HpcmError(f"callgrind has not counted {operator}", advice="see whether valgrind works")
    return int(found[1])


def _output(command: list[str], what: str) -> str:
    """Both outputs of a command that succeeds; raises HpcmError with its last line when it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HpcmError(f"{what} failed: {error}") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise HpcmError(f"{what} failed: {last[0]}")
    return done.stdout + done.stderr
