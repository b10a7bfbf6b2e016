"""Compiles csrc/ on first use, keeps the results, and reports what is missing when it cannot.

A library is cached per (torch version, sources and flags, processor or GPU architecture) in `cache_directory()`, built
by ninja behind a file lock and moved into place whole, so processes that start together build it once. A failed build
is recorded beside it and not tried again until the compiler changes or `toolchain_report(build=True)` (which is what
`hpcm doctor` calls) asks for it. Nothing here raises at import or when a tool is missing: `ensure_built` returns False
and warns once per process, and the caller uses plain PyTorch.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import shlex
import subprocess
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcm_codec.errors import UsageError
from hpcm_codec.ops.cache import ADVICE, BuildError, cache_directory, is_sound, publish
from hpcm_codec.ops.shipped import shipped_library
from hpcm_codec.ops.sources import FLAGS, SOURCES, Backend, source_digest, source_directory
from hpcm_codec.ops.toolchain import architecture_of, compile_command, find_compiler, find_ninja, processor, version_of

if TYPE_CHECKING:
    import torch

__all__ = [
    "FLAGS",
    "SOURCES",
    "Backend",
    "compile_command",
    "ensure_built",
    "find_compiler",
    "find_ninja",
    "function",
    "last_error",
    "processor",
    "setting",
    "source_directory",
    "use_compiled",
]

WORK: dict[str, str] = {
    "cpp": "Bi-WKV4 operator in C++",
    "cuda": "Bi-WKV4 operator for the GPU",
    "integer": "integer operators and rANS decoder in C++",
    "training": "operators of a training step in C++",
    "update": "update of weights in C++",
}
# what runs in plain PyTorch where the library is missing
WITHOUT: dict[str, str] = {
    "cpp": "Bi-WKV4 runs",
    "cuda": "Bi-WKV4 runs",
    "integer": "the integer operators run",
    "training": "training steps run",
    "update": "the update of weights in training runs",
}
BUILD_SECONDS = 600  # longest a build may take, and longest another process waits for it
logger = logging.getLogger("hpcm_codec.ops")


class _State:
    """Libraries that this process has loaded, and errors of those that it could not; guarded by `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.libraries: dict[tuple[str, str], ctypes.CDLL] = {}
        self.errors: dict[tuple[str, str], str] = {}
        self.functions: dict[tuple[str, str, str], Any] = {}
        self.warned: set[str] = set()


_state = _State()


def _torch_version(backend: Backend) -> str:
    """Torch's version, for what works on its tensors; what works without it must not depend on it."""
    if backend == "integer":
        return ""
    import torch

    return torch.__version__


def cache_key(backend: Backend, architecture: str) -> str:
    """Names the cache entry; any change of sources, flags or architecture changes it, and of torch where that matters."""
    parts = (_torch_version(backend), " ".join(FLAGS[backend]), os.environ.get("CXX", ""), architecture)
    return f"{backend}-{source_digest(backend, parts)}"


def missing_tool(backend: Backend) -> str | None:
    """What to install before a build can be tried, or None."""
    if find_compiler(backend) is None:
        if backend != "cuda":
            return "no C++ compiler found: install g++ or clang++ (Debian, Ubuntu: apt install g++), or set CXX"
        return "nvcc not found: install the CUDA toolkit of your driver's version, or set CUDA_HOME to where it is"
    if find_ninja() is None:
        return "ninja not found: pip install ninja"
    return None


def _run_ninja(backend: Backend, library: Path, architecture: str) -> None:
    """Compile into `library`. Raises BuildError with the end of the compiler's output."""
    compiler, ninja = find_compiler(backend), find_ninja()
    assert compiler is not None and ninja is not None
    logger.warning("hpcm: compiling the %s, once (a few seconds)", WORK[backend])
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=f"{library.stem}-") as name:
        folder = Path(name)
        source = source_directory() / SOURCES[backend]
        command = shlex.join(compile_command(backend, compiler, source, folder / library.name, architecture))
        escaped = str(source).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
        rule = f"rule compile\n  command = {command.replace('$', '$$')}\nbuild {library.name}: compile {escaped}\n"
        (folder / "build.ninja").write_text(rule, encoding="utf-8")
        try:
            done = subprocess.run(
                [ninja, "-C", str(folder)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=BUILD_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"the build did not finish: {error}") from error
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-2000:]
            if os.strerror(errno.ENOSPC) in said:  # not the compiler's fault: not recorded as a failed build
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise BuildError(f"the build failed: {said}")
        publish(folder / library.name, library)


def _library_file(backend: Backend, architecture: str, *, retry: bool) -> Path:
    """The compiled library, built if need be. Raises BuildError; records it unless only a tool was missing."""
    if (shipped := shipped_library(backend)) is not None:
        return shipped
    folder = cache_directory()
    library = folder / f"{cache_key(backend, architecture)}.so"
    if is_sound(library):
        return library
    if missing := missing_tool(backend):
        raise BuildError(missing)
    from filelock import FileLock, Timeout  # only a process that builds needs it

    failure = library.with_suffix(".failed.json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock"), timeout=BUILD_SECONDS):
            if is_sound(library):  # another process was faster
                return library
            compiler = version_of(find_compiler(backend))
            if not retry and failure.is_file():
                remembered = json.loads(failure.read_text(encoding="utf-8"))
                if remembered.get("compiler") == compiler:
                    raise BuildError(f"{remembered['error']} (remembered; `hpcm doctor` tries again)")
            try:
                _run_ninja(backend, library, architecture)
            except BuildError as error:
                record = {"compiler": compiler, "error": error.reason, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
                failure.write_text(json.dumps(record, indent=1), encoding="utf-8")
                raise
            failure.unlink(missing_ok=True)
            return library
    except Timeout as error:
        raise BuildError(
            "another process has been building it for too long", advice=f"delete {error.lock_file}"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise BuildError(f"the cache in {folder} cannot be used ({error})", advice=ADVICE) from error


def _load(backend: Backend, device: torch.device | None, *, retry: bool) -> ctypes.CDLL:
    """Build if need be, load, and check that the machine can run it. Raises BuildError."""
    architecture = architecture_of(backend, device)
    try:
        library = ctypes.CDLL(str(_library_file(backend, architecture, retry=retry)))
    except OSError as error:
        raise BuildError(f"the compiled library does not load ({error})") from error
    if backend == "cuda":
        import torch

        with torch.cuda.device(device):
            library.hpcm_biwkv4_check.restype = ctypes.c_char_p
            if (message := library.hpcm_biwkv4_check()) is not None:
                advice = "install a CUDA toolkit that the driver supports and empty the cache"
                raise BuildError(f"the GPU cannot run the build: {message.decode()}", advice=advice)
    return library


def ensure_built(
    backend: Backend = "cpp", block: bool = True, device: torch.device | None = None, retry: bool = False
) -> bool:
    """Whether the compiled backend is ready for use in this process.

    block: True builds it now if it is not in the cache (seconds; one line on stderr); False builds it in a background
           thread and returns whether it is ready already.
    device: the CUDA device it is for (None: the current one). retry: try again although a build has failed.
    Never raises for what the machine lacks: it warns once per process and returns False; `last_error` has the reason.
    """
    try:
        entry = (backend, architecture_of(backend, device) if backend == "cuda" else "")
    except (RuntimeError, AssertionError) as error:  # torch without CUDA, or no device
        _state.errors[backend, ""] = f"no CUDA device: {error}"
        return False
    if entry in _state.libraries:
        return True
    if entry in _state.errors and not retry:
        return False
    if not block and not _is_cached(backend, device):
        threading.Thread(target=ensure_built, args=(backend, True, device, retry), daemon=True).start()
        return False
    with _state.lock:
        if entry in _state.libraries:
            return True
        try:
            _state.libraries[entry] = _load(backend, device, retry=retry)
            _state.errors.pop(entry, None)
            return True
        except BuildError as error:
            _state.errors[entry] = str(error)
            if backend not in _state.warned:
                _state.warned.add(backend)
                same = "the same results but for rounding" if backend in ("training", "update") else "the same results"
                text = f"{WITHOUT[backend]} in plain PyTorch, slower and with {same}; {backend} backend: {error}"
                with suppress(RuntimeWarning):  # programs may turn warnings into errors
                    warnings.warn(text, RuntimeWarning, stacklevel=2)
            return False


def _is_cached(backend: Backend, device: torch.device | None) -> bool:
    try:
        return is_sound(cache_directory() / f"{cache_key(backend, architecture_of(backend, device))}.so")
    except BuildError:
        return True  # loading it fails at once with the reason


def setting() -> str:
    """HPCM_OPS: auto, torch, cpp or cuda. Raises UsageError for anything else."""
    chosen = os.environ.get("HPCM_OPS") or "auto"
    if chosen not in ("auto", "torch", "cpp", "cuda"):
        raise UsageError(f"HPCM_OPS={chosen} is not a known value", advice="use auto, torch, cpp or cuda")
    return chosen


def use_compiled(backend: Backend, device: torch.device | None = None) -> bool:
    """Whether HPCM_OPS and the machine give this backend; it is loaded then.

    Raises BuildError when HPCM_OPS requires it and it cannot be built, UsageError when HPCM_OPS has an unknown value.
    """
    chosen = setting()
    if chosen == "torch":
        return False
    if ensure_built(backend, block=True, device=device):
        return True
    if chosen == ("cuda" if backend == "cuda" else "cpp"):
        raise BuildError(f"HPCM_OPS={chosen}: {last_error(backend)}", advice="unset HPCM_OPS to go on without it")
    return False


def last_error(backend: Backend) -> str:
    """Why the backend is not available in this process; '' if nothing has failed."""
    return next((error for (name, _), error in _state.errors.items() if name == backend), "")


def function(backend: Backend, name: str, device: torch.device | None = None) -> Any:
    """A C function of a backend for which `ensure_built` returned True; cuda functions return None or a message (bytes)."""
    entry = (backend, architecture_of(backend, device) if backend == "cuda" else "")
    if (known := _state.functions.get((*entry, name))) is not None:
        return known
    found = getattr(_state.libraries[entry], name)
    found.restype = ctypes.c_char_p if backend == "cuda" else None
    _state.functions[(*entry, name)] = found
    return found
