"""What `hpcm doctor` prints about the compiled backends."""

from __future__ import annotations

import json
import os
import warnings

from hpcm_codec.ops.build import cache_key, ensure_built, last_error, missing_tool
from hpcm_codec.ops.cache import BuildError, cache_directory, is_sound
from hpcm_codec.ops.sources import Backend
from hpcm_codec.ops.toolchain import architecture_of, find_compiler, find_ninja, version_of


def toolchain_report(build: bool = False) -> dict[str, str]:
    """What `hpcm doctor` prints about the compiled backends: one line of text per topic.

    build: also build what is missing, even if it failed before; without it nothing is compiled, and a backend is
    reported as 'not built yet'.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    report = {
        "torch": torch.__version__,
        "HPCM_OPS": os.environ.get("HPCM_OPS") or "auto",
        "C++ compiler": version_of(find_compiler("cpp")),
        "nvcc": version_of(find_compiler("cuda")),
        "ninja": find_ninja() or "not found",
        "GPU": f"{torch.cuda.get_device_name()} (sm_{architecture_of('cuda')})" if has_cuda else "none visible",
        "cache": _cache_in_words(),
    }
    backends: dict[Backend, str] = {
        "cpp": "backend on cpu",
        "cuda": "backend on cuda",
        "integer": "integer operators",
        "training": "training operators",
        "update": "update of weights",
    }
    for backend, topic in backends.items():
        if backend == "cuda" and not has_cuda:
            report[topic] = "none: no CUDA device"
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report is the warning
            status, error = _status(backend, build)
        report[topic] = status
        report[f"last build error, {backend}"] = error or "none"
    return report


def _cache_in_words() -> str:
    try:
        return str(cache_directory())
    except BuildError as error:
        return f"none: {error}"


def _status(backend: Backend, build: bool) -> tuple[str, str]:
    """The backend that an operator would choose, in words, and the last build error."""
    if (os.environ.get("HPCM_OPS") or "auto") == "torch":
        return "torch (HPCM_OPS)", last_error(backend)
    ready = "cuda" if backend == "cuda" else "cpp"  # as HPCM_OPS calls it
    if build:
        return (ready, "") if ensure_built(backend, retry=True) else ("torch", last_error(backend))
    if missing := last_error(backend) or missing_tool(backend):
        return "torch", missing
    try:
        library = cache_directory() / f"{cache_key(backend, architecture_of(backend))}.so"
        if is_sound(library):
            return ready, ""
        failure = library.with_suffix(".failed.json")
        if failure.is_file():
            return "torch", str(json.loads(failure.read_text(encoding="utf-8"))["error"])
    except (BuildError, OSError, ValueError, KeyError) as error:
        return "torch", str(error)
    return f"{ready} (not built yet: compiled at first use)", ""
