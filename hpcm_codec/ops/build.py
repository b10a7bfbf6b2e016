"""Compiles csrc/ on first use, keeps the results, and says what is missing when it cannot.

A library is cached per (torch version, sources and flags, processor or GPU architecture) in `cache_directory()`, built
by ninja behind a file lock and moved into place whole, so processes that start together build it once. A failed build
is remembered beside it and not tried again until the compiler changes or `toolchain_report(build=True)` (which is what
`hpcm doctor` calls) asks for it. Nothing here raises at import or when a tool is missing: `ensure_built` returns False
and warns once per process, and the caller goes on without.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpcm_codec.errors import UsageError
from hpcm_codec.ops.cache import ADVICE, BuildError, cache_directory, is_sound, publish

if TYPE_CHECKING:
    import torch

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
        "bfloat16.h",
        "matrix_block.h",
        "matrix_product.h",
        "training_mixing.h",
        "training_patches.h",
        "training_planes.h",
        "training_rate.h",
    ),
    "update": (),
}
WORK: dict[str, str] = {
    "cpp": "Bi-WKV4 operator in C++",
    "cuda": "Bi-WKV4 operator for the GPU",
    "integer": "integer operators and rANS decoder in C++",
    "training": "operators of a training step in C++",
    "update": "update of weights in C++",
}
# what goes on in plain PyTorch without it
WITHOUT: dict[str, str] = {
    "cpp": "Bi-WKV4 runs",
    "cuda": "Bi-WKV4 runs",
    "integer": "the integer operators run",
    "training": "training steps run",
    "update": "the update of weights in training runs",
}
# -ffp-contract=off and -fmad=false: a multiply-add that rounds once would give other bits than the other backends.
CPP_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-Wno-psabi")
# No result is a NaN or looks at errno or at the floating-point exceptions: rounding down can be one instruction.
EXACT_FLAGS = (*CPP_FLAGS, "-fno-math-errno", "-fno-trapping-math")
# These have threads of their own (csrc/threads.h), so that a library works where OpenMP's is not installed.
INTEGER_FLAGS = tuple("-pthread" if flag == "-fopenmp" else flag for flag in EXACT_FLAGS)
# Training asks for speed, not for the same bits everywhere.
TRAINING_FLAGS = tuple(flag for flag in EXACT_FLAGS if flag != "-ffp-contract=off")
CUDA_FLAGS = ("-O3", "-std=c++17", "-shared", "-fmad=false", "-Xcompiler", "-fPIC,-ffp-contract=off")
# Nothing looks at errno: a square root can be one instruction.
UPDATE_FLAGS = (*CPP_FLAGS, "-fno-math-errno")
FLAGS: dict[str, tuple[str, ...]] = {
    "cpp": CPP_FLAGS,
    "cuda": CUDA_FLAGS,
    "integer": INTEGER_FLAGS,
    "training": TRAINING_FLAGS,
    "update": UPDATE_FLAGS,
}
BUILD_SECONDS = 600  # longest a build may take, and longest another process waits for it
logger = logging.getLogger("hpcm_codec.ops")


class _State:
    """What this process has loaded, and why it has not; guarded by `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.libraries: dict[tuple[str, str], ctypes.CDLL] = {}
        self.errors: dict[tuple[str, str], str] = {}
        self.functions: dict[tuple[str, str, str], Any] = {}
        self.warned: set[str] = set()


_state = _State()


def source_directory() -> Path:
    """csrc/ inside the installed package, or beside it in a source checkout. Raises BuildError if neither is there."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "biwkv4.h").is_file():
            return folder
    raise BuildError("the C++ sources (csrc/) are not installed", advice="reinstall hpcm-codec")


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
    return f"integer-{level}-{_digest('integer', (' '.join((*INTEGER_FLAGS, *LEVELS[level][1])),))}.so"


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


def _torch_version(backend: Backend) -> str:
    """Torch's version, for what works on its tensors; what works without it must not depend on it."""
    if backend == "integer":
        return ""
    import torch

    return torch.__version__


def cache_key(backend: Backend, architecture: str) -> str:
    """Names the cache entry; any change of sources, flags or architecture changes it, and of torch where that matters."""
    parts = (_torch_version(backend), " ".join(FLAGS[backend]), os.environ.get("CXX", ""), architecture)
    return f"{backend}-{_digest(backend, parts)}"


def _digest(backend: Backend, parts: tuple[str, ...]) -> str:
    """20 hexadecimal digits of the sources and whatever else matters."""
    digest = hashlib.sha256()
    folder = source_directory()
    for part in parts:
        digest.update(part.encode() + b"\0")
    for name in (*HEADERS[backend], SOURCES[backend]):
        digest.update((folder / name).read_bytes() + b"\0")
    return digest.hexdigest()[:20]


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


def _missing_tool(backend: Backend) -> str | None:
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
            if os.strerror(errno.ENOSPC) in said:  # no fault of the compiler's, to be remembered as one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise BuildError(f"the build failed: {said}")
        publish(folder / library.name, library)


def _library_file(backend: Backend, architecture: str, *, retry: bool) -> Path:
    """The compiled library, built if need be. Raises BuildError; remembers it unless only a tool was missing."""
    if (shipped := shipped_library(backend)) is not None:
        return shipped
    folder = cache_directory()
    library = folder / f"{cache_key(backend, architecture)}.so"
    if is_sound(library):
        return library
    if missing := _missing_tool(backend):
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
           thread and says whether it is ready already.
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
                with suppress(RuntimeWarning):  # programs may make errors of warnings
                    warnings.warn(text, RuntimeWarning, stacklevel=2)
            return False


def _is_cached(backend: Backend, device: torch.device | None) -> bool:
    try:
        return is_sound(cache_directory() / f"{cache_key(backend, architecture_of(backend, device))}.so")
    except BuildError:
        return True  # loading it fails at once and says why


def setting() -> str:
    """HPCM_OPS: auto, torch, cpp or cuda. Raises UsageError for anything else."""
    chosen = os.environ.get("HPCM_OPS") or "auto"
    if chosen not in ("auto", "torch", "cpp", "cuda"):
        raise UsageError(f"HPCM_OPS={chosen} means nothing", advice="use auto, torch, cpp or cuda")
    return chosen


def use_compiled(backend: Backend, device: torch.device | None = None) -> bool:
    """Whether HPCM_OPS and the machine give this backend; it is loaded then.

    Raises BuildError when HPCM_OPS insists on it and it cannot be built, UsageError when HPCM_OPS has no meaning.
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
    """A C function of a backend that `ensure_built` said is ready; cuda functions return None or a message (bytes)."""
    entry = (backend, architecture_of(backend, device) if backend == "cuda" else "")
    if (known := _state.functions.get((*entry, name))) is not None:
        return known
    found = getattr(_state.libraries[entry], name)
    found.restype = ctypes.c_char_p if backend == "cuda" else None
    _state.functions[(*entry, name)] = found
    return found


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
    if missing := last_error(backend) or _missing_tool(backend):
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
