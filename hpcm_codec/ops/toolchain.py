"""The tools that compile: which compiler, nvcc and ninja there are, what a build depends on, and the command that builds.

Nothing here raises when a tool is missing: it is None, or 'not found'.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hpcm_codec.ops.sources import CUDA_FLAGS, FLAGS, Backend

if TYPE_CHECKING:
    import torch


def find_compiler(backend: Backend) -> list[str] | None:
    """The command of the C++ compiler or of nvcc; None if absent.

    Looked for in this order: $CXX, or c++, g++, clang++ on PATH; nvcc in $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda.
    """
    if backend != "cuda":
        chosen = shlex.split(os.environ.get("CXX", ""))
        candidates = [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]
        return next(([path, *command[1:]] for command in candidates if (path := shutil.which(command[0]))), None)
    folders = [Path(root) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if (root := os.environ.get(name))]
    nvcc = next((path for folder in folders if (path := shutil.which("nvcc", path=str(folder)))), None)
    nvcc = nvcc or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return [nvcc] if nvcc else None


def find_ninja() -> str | None:
    """ninja on PATH, or beside this Python: pip puts it there, also when the environment is not activated."""
    return shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))


@cache
def processor() -> str:
    """What -march=native depends on: machine, processor model and instruction sets, as far as the system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    wanted = ("model name", "flags", "CPU part", "CPU implementer", "Features", "isa")
    return "\n".join([platform.machine(), *(line for line in lines if len(lines) == 1 or line.startswith(wanted))])


def architecture_of(backend: Backend, device: torch.device | None = None) -> str:
    """The processor's identity, or the CUDA device's compute capability ('90' for 9.0; None: the current device)."""
    if backend != "cuda":
        return processor()
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


def compile_command(backend: Backend, compiler: list[str], source: Path, output: Path, architecture: str) -> list[str]:
    """The one command that turns a source file into a shared library."""
    if backend != "cuda":
        return [*compiler, *FLAGS[backend], str(source), "-o", str(output)]
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    return [*compiler, *CUDA_FLAGS, target, str(source), "-o", str(output)]


def version_of(command: list[str] | None) -> str:
    """The line of `command --version` that names the version, or 'not found'."""
    if command is None:
        return "not found"
    try:
        answer = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} does not run ({error})"
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    named = next((line for line in lines if "release" in line), lines[0] if lines else "unknown version")
    return f"{command[0]} ({named.strip()})"
