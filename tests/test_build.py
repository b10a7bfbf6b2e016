"""Compiling csrc/ on first use: what is cached, what is remembered, and what happens where something is missing."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from hpcm_codec.constants import DEFAULT_MODEL
from hpcm_codec.ops import BuildError, build, cache, ensure_built, scan, sources, toolchain_report
from hpcm_codec.ops.biwkv4 import biwkv4
from hpcm_codec.ops.cache import is_sound
from hpcm_codec.weights.registry import known_checkpoints, models_folder

ROOT = Path(__file__).resolve().parents[1]
needs_compiler = pytest.mark.skipif(
    build.find_compiler("cpp") is None or build.find_ninja() is None, reason="no C++ compiler or no ninja"
)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has loaded nothing, and an empty cache."""
    monkeypatch.setattr(build, "_state", build._State())
    monkeypatch.setenv("HPCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HPCM_OPS", raising=False)
    return tmp_path


def arguments(length: int = 40) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in ((3,), (3,), (1, length, 3), (1, length, 3)))


def fake_compiler(folder: Path, body: str) -> tuple[Path, Path]:
    """A script to be $CXX that logs each compilation (not --version) and then does `body`; the script and its log."""
    script, log = folder / "compiler", folder / "compilations"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "fake 1.0" && exit 0\necho x >> {log}\n{body}\n')
    script.chmod(0o755)
    return script, log


def compilations(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_importing_compiles_nothing_and_touches_no_file(tmp_path: Path) -> None:
    program = (
        "import hpcm_codec.ops, sys; sys.exit('filelock' in sys.modules or 'torch.utils.cpp_extension' in sys.modules)"
    )
    environment = {**os.environ, "HPCM_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, check=True)
    assert not (tmp_path / "cache").exists()


@needs_compiler
def test_the_first_call_builds_and_the_next_process_finds_it(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.equal(biwkv4(*arguments()), scan.forward(*arguments()))
    libraries = list((fresh / "cache" / "ops").glob("cpp-*.so"))
    assert len(libraries) == 1 and not list((fresh / "cache" / "ops").glob("*/build.ninja"))
    monkeypatch.setattr(build, "_state", build._State())
    monkeypatch.setattr(build, "find_compiler", lambda backend: None)  # no compiler is needed any more
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ensure_built("cpp", block=False)


@needs_compiler
def test_processes_that_start_together_build_once(fresh: Path) -> None:
    compiler, log = fake_compiler(fresh, 'exec c++ "$@"' if shutil.which("c++") else 'exec g++ "$@"')
    environment = {**os.environ, "CXX": str(compiler)}
    program = "from hpcm_codec.ops import ensure_built; import sys; sys.exit(not ensure_built())"
    processes = [subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=ROOT) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert compilations(log) == 1


@needs_compiler
def test_a_build_in_the_background_does_not_block(fresh: Path) -> None:
    assert not ensure_built(block=False)
    assert ensure_built(block=True)  # waits for the one under way


@pytest.mark.parametrize(("tool", "words"), [("find_compiler", "install g++"), ("find_ninja", "pip install ninja")])
def test_a_missing_tool_gives_one_warning_and_the_pure_path(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tool: str, words: str
) -> None:
    monkeypatch.setattr(build, tool, lambda *backend: None)
    if tool == "find_ninja":
        monkeypatch.setattr(build, "find_compiler", lambda backend: ["c++"])
    with pytest.warns(RuntimeWarning, match=words) as caught:
        for _ in range(3):
            assert torch.equal(biwkv4(*arguments()), scan.forward(*arguments()))
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1


def test_insisting_on_a_backend_that_cannot_be_built_is_an_error(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda backend: None)
    monkeypatch.setenv("HPCM_OPS", "cpp")
    with pytest.warns(RuntimeWarning), pytest.raises(BuildError, match="install g"):
        biwkv4(*arguments())


@needs_compiler
def test_a_failed_build_is_remembered_until_the_compiler_changes_or_a_retry(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, log = fake_compiler(fresh, "echo 'no such instruction' >&2; exit 1")
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.warns(RuntimeWarning, match="no such instruction"):
        assert not ensure_built()
    monkeypatch.setattr(build, "_state", build._State())  # the next process
    with pytest.warns(RuntimeWarning, match="remembered"):
        assert not ensure_built()
    assert compilations(log) == 1
    assert "no such instruction" in toolchain_report()["last build error, cpp"]
    assert compilations(log) == 1
    assert "no such instruction" in toolchain_report(build=True)["last build error, cpp"]
    assert compilations(log) == 5  # and those of integers, of training and of its update, for the first time
    compiler.write_text(compiler.read_text().replace("fake 1.0", "fake 1.1"))
    monkeypatch.setattr(build, "_state", build._State())
    with pytest.warns(RuntimeWarning):
        assert not ensure_built()
    assert compilations(log) == 6


@needs_compiler
def test_a_cache_that_cannot_be_written_is_named(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "file").write_text("")
    monkeypatch.setenv("HPCM_CACHE", str(fresh / "file"))
    with pytest.warns(RuntimeWarning, match="set HPCM_CACHE"):
        assert torch.equal(biwkv4(*arguments()), scan.forward(*arguments()))


@needs_compiler
@pytest.mark.parametrize(
    "damage", ["cut", "other", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("zeros", "empty"))]
)
def test_a_damaged_library_is_built_again(damage: str, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ensure_built()
    library = cache.cache_directory() / f"{build.cache_key('cpp', build.processor())}.so"
    content = library.read_bytes()
    changed = {"cut": content[:3000], "zeros": bytes(len(content)), "other": b"not a library", "empty": b""}[damage]
    library.unlink()  # the one that this process has loaded stays as it is
    library.write_bytes(changed)
    monkeypatch.setattr(build, "_state", build._State())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ensure_built()
    assert is_sound(library) and len(library.read_bytes()) > 3000
    assert torch.equal(biwkv4(*arguments()), scan.forward(*arguments()))


def assert_goes_on_with_one_warning(match: str) -> None:
    with pytest.warns(RuntimeWarning, match=match) as caught:
        for _ in range(2):
            assert torch.equal(biwkv4(*arguments()), scan.forward(*arguments()))
    assert len([one for one in caught if one.category is RuntimeWarning]) == 1
    assert toolchain_report()["cache"]


@needs_compiler
def test_a_full_disk_is_named_and_not_taken_for_a_fault_of_the_compiler(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, _ = fake_compiler(fresh, "echo 'cannot write: No space left on device' >&2; exit 1")
    monkeypatch.setenv("CXX", str(compiler))
    assert_goes_on_with_one_warning("No space left on device")
    monkeypatch.setattr(build, "_state", build._State())
    assert_goes_on_with_one_warning("cannot be used")  # and not what is remembered
    assert not list(fresh.rglob("*.failed.json"))


def test_a_user_without_a_home_folder_can_work(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> object:
        raise KeyError("getpwuid(): uid not found: 12345")

    for variable in ("HPCM_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HPCM_MODELS", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert models_folder() is None and DEFAULT_MODEL in known_checkpoints()
    assert_goes_on_with_one_warning("no home folder")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users to tell apart")
def test_libraries_of_another_user_are_not_loaded(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh))
    (fresh / "hpcm-codec" / "ops").mkdir(parents=True)
    owner = (fresh / "hpcm-codec" / "ops").stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner)
    assert cache.cache_directory() == fresh / "hpcm-codec" / "ops"
    monkeypatch.setattr(cache, "is_foreign", lambda folder: True)
    assert_goes_on_with_one_warning("belongs to another user")


@needs_compiler
def test_a_cache_that_may_not_be_written_goes_on(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)  # the tests may be run by a user to whom nothing is refused
    assert_goes_on_with_one_warning("Permission denied")


WITHOUT_HOME = """
import os, pwd, sys
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown
for name in ("HOME", "HPCM_CACHE", "HPCM_MODELS", "XDG_CACHE_HOME", "XDG_DATA_HOME", "USER", "LOGNAME"):
    os.environ.pop(name, None)
from hpcm_codec.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["encode photo.png -o a.hpcm", "info photo.hpcm", "checkpoints list", "doctor"])
def test_every_command_works_without_a_home_folder(command: str, photograph: Path, stream: bytes) -> None:
    (photograph.parent / "photo.hpcm").write_bytes(stream)
    arguments = [sys.executable, "-c", WITHOUT_HOME, *command.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, cwd=photograph.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "a bug" not in done.stderr, done.stderr
    assert done.stderr.count("warning") <= 1 or command == "doctor"
    assert not command.startswith("encode") or (photograph.parent / "a.hpcm").read_bytes().startswith(b"HPC")


def test_the_key_changes_with_torch_the_sources_and_the_architecture(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [
        build.cache_key("cpp", "a"),
        build.cache_key("cpp", "b"),
        build.cache_key("cuda", "90"),
        build.cache_key("cuda", "86"),
        build.cache_key("integer", "a"),
        build.cache_key("update", "a"),
    ]
    monkeypatch.setattr(torch, "__version__", "2.99")
    keys.append(build.cache_key("cpp", "a"))
    monkeypatch.undo()
    shutil.copytree(build.source_directory(), fresh / "csrc")
    with (fresh / "csrc" / "biwkv4.h").open("a") as header:
        header.write("// changed\n")
    monkeypatch.setattr(sources, "source_directory", lambda: fresh / "csrc")
    keys.append(build.cache_key("cpp", "a"))
    assert len(set(keys)) == len(keys)


def test_sources_are_found_in_a_checkout_and_in_a_wheel(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = fresh / "site-packages" / "hpcm_codec"
    shutil.copytree(build.source_directory(), package / "csrc")
    (package / "ops").mkdir()
    monkeypatch.setattr(sources, "__file__", str(package / "ops" / "sources.py"))
    assert build.source_directory() == package / "csrc"
    shutil.move(package / "csrc", package.parent / "csrc")
    assert build.source_directory() == package.parent / "csrc"
    shutil.rmtree(package.parent / "csrc")
    with pytest.raises(BuildError, match="reinstall"):
        build.source_directory()


def test_the_report_builds_nothing_unless_asked(fresh: Path) -> None:
    report = toolchain_report()
    assert not (fresh / "cache").exists()
    assert {
        "C++ compiler",
        "nvcc",
        "ninja",
        "cache",
        "backend on cpu",
        "backend on cuda",
        "integer operators",
        "update of weights",
    } <= report.keys()
    assert all(isinstance(text, str) and text for text in report.values())


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache.cache_directory() == Path("/elsewhere/hpcm-codec/ops")
    monkeypatch.setenv("HPCM_CACHE", "/mine")
    assert cache.cache_directory() == Path("/mine/ops")


@pytest.mark.skipif(build.find_compiler("cuda") is None, reason="nvcc not found")
@pytest.mark.skipif(build.find_compiler("cpp") is None, reason="nvcc needs a C++ compiler")
@pytest.mark.parametrize("architecture", ["90"])
def test_the_cuda_source_compiles(tmp_path: Path, architecture: str) -> None:
    compiler = build.find_compiler("cuda")
    assert compiler is not None
    library = tmp_path / "cuda.so"
    source = build.source_directory() / build.SOURCES["cuda"]
    command = build.compile_command("cuda", compiler, source, library, architecture)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    for name in ("float32", "float16", "bfloat16"):
        assert hasattr(loaded, f"hpcm_biwkv4_forward_{name}") and hasattr(loaded, f"hpcm_biwkv4_backward_{name}")
    if not torch.cuda.is_available():
        loaded.hpcm_biwkv4_check.restype = ctypes.c_char_p
        assert loaded.hpcm_biwkv4_check()  # says that there is no device or no driver, and does not crash


def test_warnings_made_errors_end_no_work(photograph: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "CXX": "/no/compiler"}
    environment["HPCM_CACHE"] = str(photograph.parent / "cache")
    (photograph.parent / "in").mkdir()
    for name in ("1.png", "2.png"):
        shutil.copy(photograph, photograph.parent / "in" / name)
    program = "import hpcm_codec; print(hpcm_codec.decode(hpcm_codec.encode('photo.png')).size)"
    for arguments in (["-m", "hpcm_codec", "encode", "in", "-o", "out", "--jobs", "2"], ["-c", program]):
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=photograph.parent, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "a bug" not in done.stderr, done.stderr
    assert sorted(os.listdir(photograph.parent / "out")) == ["1.hpcm", "2.hpcm"] and "(96, 64)" in done.stdout
