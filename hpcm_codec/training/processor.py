"""What the speed of training on the processor depends on: the units that multiply bfloat16 matrices, and the memory allocator.

Nothing here is needed for coding pictures. The results are for `hpcm doctor`, `hpcm train run` and `hpcm bench --training`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

UNITS = ("amx_bf16", "avx512_bf16")  # as /proc/cpuinfo calls them
PACKAGE, LIBRARY = "libtcmalloc-minimal4", "libtcmalloc_minimal.so.4"
# Measured on two Intel cores with AMX: 10 to 13% of a step of phase1-lite.
GAIN = "memory is then not fetched and cleared anew in every step: about a tenth of a step's time"
ARCH_PRCTL, ASK_FOR_TILES, TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64, as csrc/matrix_product.h requests


def matrix_units() -> list[str]:
    """Those of UNITS that the processor has; none where the system does not report them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return [unit for unit in UNITS if unit in flags]


def matrix_products() -> str:
    """How the compiled operators of a training step multiply matrices here: "AMX", "AVX-512 bfloat16" or "plain vectors".

    That is decided by the processor, by what the compiler knows of it, and by the system, which has to allow AMX.
    """
    from hpcm_codec.ops.build import find_compiler

    known = _compiled_for(find_compiler("cpp"))
    if "__AMX_BF16__" in known and sys.platform == "linux" and _tiles_are_allowed():
        return "AMX"
    return "AVX-512 bfloat16" if "__AVX512BF16__" in known else "plain vectors"


def _compiled_for(compiler: list[str] | None) -> set[str]:
    """The names that the compiler defines for this processor."""
    if compiler is None:
        return set()
    command = [*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return set(re.findall(r"^#define (\w+)", printed, re.MULTILINE))


def _tiles_are_allowed() -> bool:
    """Whether the system lets this process use AMX; it is then allowed to, until its end."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(ctypes.CDLL(None).syscall(ARCH_PRCTL, ASK_FOR_TILES, TILE_DATA) == 0)


def preloaded_allocator() -> str | None:
    """The file name of the allocator that replaces the C library's in this process (tcmalloc or another), None without one.

    Linux only: elsewhere None.
    """
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"/(lib(?:tcmalloc|jemalloc|mimalloc)[^/\s]*)$", mapped, re.MULTILINE)
    return None if found is None else found.group(1)


def tcmalloc_advice() -> str | None:
    """How to use tcmalloc in the next run; None where another allocator is in use already, or on other systems than Linux."""
    if sys.platform != "linux" or preloaded_allocator() is not None:
        return None
    found = _tcmalloc_file()
    if found is not None:
        return f"LD_PRELOAD={found}"
    usual = Path("/usr/lib", f"{platform.machine()}-linux-gnu", LIBRARY)
    return f"apt install {PACKAGE} (Debian, Ubuntu), then LD_PRELOAD={usual}"


def _tcmalloc_file() -> Path | None:
    folders = [*Path("/usr/lib").glob("*-linux-gnu"), *map(Path, ("/usr/lib64", "/usr/lib", "/usr/local/lib"))]
    names = (LIBRARY, "libtcmalloc_minimal.so", "libtcmalloc.so.4", "libtcmalloc.so")
    return next((folder / name for name in names for folder in folders if (folder / name).is_file()), None)
