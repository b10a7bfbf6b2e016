"""What is compiled out of csrc/ and with which flags: one shared library for each backend.

With -march=native a library runs on one kind of processor, which `toolchain` identifies; those of `shipped` need an instruction set
only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from hpcm_codec.ops.cache import BuildError

# Bi-WKV4 in C++ and in CUDA, the exact profile's operators in C++, those of a training step, the update of weights
Backend = Literal["cpp", "cuda", "integer", "training", "update"]

SOURCES: dict[str, str] = {
    "cpp": "biwkv4_cpu.cpp",
    "cuda": "biwkv4_cuda.cu",
    "integer": "integer_cpu.cpp",
    "training": "training_cpu.cpp",
    "update": "update_cpu.cpp",
}
HEADERS: dict[str, tuple[str, ...]] = {
    "cpp": ("biwkv4.h",),
    "cuda": ("biwkv4.h",),
    "integer": (
        "integer.h",
        "integer_branch.h",
        "integer_depthwise.h",
        "integer_linear.h",
        "integer_mixing.h",
        "integer_steps.h",
        "integer_weights.h",
        "rans_decoder.h",
        "rans_encoder.h",
        "symbol_check.h",
        "threads.h",
    ),
    "training": (
        "ahead.h",
        "bfloat16.h",
        "matrix_block.h",
        "matrix_product.h",
        "training_block.h",
        "training_mixing.h",
        "training_patches.h",
        "training_planes.h",
        "training_rate.h",
    ),
    "update": (),
}
# -ffp-contract=off and -fmad=false: a multiply-add that rounds once would give other bits than the other backends.
CPP_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-Wno-psabi")
# No result is a NaN, and nothing reads errno or the floating-point exceptions: rounding down can be one instruction.
FINITE_FLAGS = (*CPP_FLAGS, "-fno-math-errno", "-fno-trapping-math")
# These have threads of their own (csrc/threads.h), so that a library works where OpenMP's is not installed.
INTEGER_FLAGS = tuple("-pthread" if flag == "-fopenmp" else flag for flag in FINITE_FLAGS)
# Training needs speed, not the same bits everywhere.
TRAINING_FLAGS = tuple(flag for flag in FINITE_FLAGS if flag != "-ffp-contract=off")
CUDA_FLAGS = ("-O3", "-std=c++17", "-shared", "-fmad=false", "-Xcompiler", "-fPIC,-ffp-contract=off")
# Nothing reads errno: a square root can be one instruction.
UPDATE_FLAGS = (*CPP_FLAGS, "-fno-math-errno")
FLAGS: dict[str, tuple[str, ...]] = {
    "cpp": CPP_FLAGS,
    "cuda": CUDA_FLAGS,
    "integer": INTEGER_FLAGS,
    "training": TRAINING_FLAGS,
    "update": UPDATE_FLAGS,
}


def source_directory() -> Path:
    """csrc/ inside the installed package, or beside it in a source checkout. Raises BuildError if neither is there."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "biwkv4.h").is_file():
            return folder
    raise BuildError("the C++ sources (csrc/) are not installed", advice="reinstall hpcm-codec")


def source_digest(backend: Backend, parts: tuple[str, ...]) -> str:
    """20 hexadecimal digits of the sources and whatever else matters."""
    digest = hashlib.sha256()
    folder = source_directory()
    for part in parts:
        digest.update(part.encode() + b"\0")
    for name in (*HEADERS[backend], SOURCES[backend]):
        digest.update((folder / name).read_bytes() + b"\0")
    return digest.hexdigest()[:20]
