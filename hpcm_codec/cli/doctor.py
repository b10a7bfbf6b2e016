"""`hpcm doctor`: reports what the program finds on this machine, and how to install what is missing."""

from __future__ import annotations

import json as json_module
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from hpcm_codec.cli import options
from hpcm_codec.errors import HpcmError
from hpcm_codec.version import __version__

PACKAGES = ("torch", "numpy", "pillow", "safetensors", "compressai", "click", "rich", "pooch", "filelock", "ninja")


@click.command("doctor")
@click.option("--build", is_flag=True, help="Compile what can be compiled now, even where that has failed before.")
@click.option("--selftest", is_flag=True, help="Decode the golden files: can this machine exchange files with others?")
@click.option("--device", metavar="auto|cpu|cuda", default="auto", show_default=True, help="Where --selftest runs.")
@click.option("--json", is_flag=True, help="JSON on stdout.")
def command(build: bool, selftest: bool, device: str, json: bool) -> int:
    """Check the installation, and say what to do about what is missing.

    The exit status is 1 when something is missing without which pictures cannot be coded, or when --selftest fails.
    """
    options.check_device(device)
    found = examine(build)
    if selftest and not found["problems"]:
        found["selftest"] = _selftest(device, found["problems"])
    click.echo(json_module.dumps(found, indent=1)) if json else _print(found)
    return 1 if found["problems"] else 0


def examine(build: bool = False) -> dict[str, Any]:
    """Everything doctor reports; `problems` prevent coding, `hints` only make it slow."""
    problems: list[str] = []
    hints: list[str] = []
    operator = _operator(build, hints)
    return {
        "hpcm-codec": __version__,
        "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "packages": {name: _version(name, problems) for name in PACKAGES},
        "devices": _devices(problems),
        "rANS coder": _rans_coder(problems),
        "operator": operator,
        "checkpoints": _checkpoints(problems),
        "training": _training(operator),
        "problems": problems,
        "hints": hints,
    }


def _version(name: str, problems: list[str]) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        problems.append(f"the package {name} is missing: pip install {name}")
        return "missing"


def _devices(problems: list[str]) -> dict[str, str]:
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be imported ({error}): install it again, see https://pytorch.org")
        return {}
    from hpcm_codec.evaluation.machine import processor_name, usable_cores

    devices = {"cpu": f"{processor_name()}, {usable_cores()} cores, torch uses {torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        devices[f"cuda:{number}"] = torch.cuda.get_device_name(number)
    return devices


def _rans_coder(problems: list[str]) -> str:
    """Code some symbols and decode them: a module that is installed may still not load."""
    try:
        import torch

        from hpcm_codec.entropy.distributions import SymbolTables
        from hpcm_codec.entropy.rans_decoder import RansDecoder
        from hpcm_codec.entropy.rans_encoder import CoderTables, RansEncoder

        one_table = torch.tensor([[0, 2**14, 3 * 2**14, 2**16 - 1, 2**16]], dtype=torch.int32)
        tables = CoderTables(SymbolTables(one_table, torch.tensor([5]), torch.tensor([-1])))
        symbols = torch.tensor([0, 1, -1, 0, 5, 0, 0, 1], dtype=torch.int32).numpy()
        encoder = RansEncoder(tables)
        encoder.encode(symbols, 0 * symbols)
        decoded = RansDecoder(tables, encoder.finish()).decode(0 * symbols)
        if decoded.tolist() != symbols.tolist():
            raise HpcmError("it does not give back what it was given")
    except (HpcmError, ImportError, OSError) as error:
        problems.append(f"compressai's rANS coder does not work ({error}): pip install --force-reinstall compressai")
        return "does not work"
    return "works"


def _operator(build: bool, hints: list[str]) -> dict[str, str]:
    """The Bi-WKV4 operator's backends; the one in PyTorch always works, so a missing one is no problem."""
    try:
        from hpcm_codec.ops.report import toolchain_report

        report = toolchain_report(build)
    except (HpcmError, ImportError, OSError) as error:
        hints.append(f"the compiled operator cannot be looked at ({error}); plain PyTorch is used, slower")
        return {}
    for topic, text in report.items():
        if topic.startswith("last build error") and text != "none":
            hints.append(f"the operator runs in plain PyTorch, slower, because of this: {text}")
    return report


def _training(operator: dict[str, str]) -> dict[str, str]:
    """What makes training on the processor fast or slow; coding does not depend on it. operator: the result of `_operator`."""
    try:
        from hpcm_codec.training.processor import matrix_products, matrix_units, preloaded_allocator, tcmalloc_advice
    except (ImportError, OSError):
        return {}  # torch's absence has been reported
    compiled = operator.get("training operators", "torch").partition(" ")[0] != "torch"
    advice = tcmalloc_advice()
    memory = preloaded_allocator() or "from the C library"
    return {
        "matrix units": ", ".join(matrix_units()) or "none for bfloat16",
        "matrix products": matrix_products() if compiled else "by torch",
        "memory": memory
        if advice is None
        else f"{memory}; for `hpcm train run` on the CPU tcmalloc is faster: {advice}",
    }


def _checkpoints(problems: list[str]) -> dict[str, str]:
    try:
        from hpcm_codec.constants import DEFAULT_MODEL
        from hpcm_codec.weights.checkpoints import each_checkpoint
        from hpcm_codec.weights.registry import shipped_checkpoints
    except (ImportError, OSError):
        return {}  # torch's absence has been reported
    found: dict[str, str] = {}
    for name in shipped_checkpoints():
        try:
            found[name] = ", ".join(checkpoint.identity.hex() for checkpoint in each_checkpoint(name))
        except HpcmError as error:
            found[name] = "damaged"
            problems.append(str(error))
    if DEFAULT_MODEL not in found:
        problems.append(f"the default checkpoint, {DEFAULT_MODEL}, is missing: install hpcm-codec again")
    return found


def _selftest(device: str, problems: list[str]) -> str:
    """Decode every golden file with the default model; the symbols must be those of the machine that made them."""
    from hpcm_codec.codec import load_codec
    from hpcm_codec.selftest import run_selftest

    try:
        codec = load_codec(device=device)
        result = run_selftest(codec)
    except HpcmError as error:
        problems.append(f"the self-test did not run: {error}")
        return "did not run"
    problems.extend(result.failures)
    if result.passed:
        return f"passed: {result.files} golden files gave the same symbols as elsewhere, in {result.seconds:g} s on {codec.device}"
    problems.append("this machine does not read what others write: please report it, with what `hpcm doctor` prints")
    return f"FAILED: {len(result.failures)} of {result.files} golden files, on {codec.device}"


def _print(found: dict[str, Any]) -> None:
    for topic, value in found.items():
        if topic in ("problems", "hints"):
            continue
        if not isinstance(value, dict):
            click.echo(f"{topic:<12} {value}")
            continue
        click.echo(topic)
        width = max((len(name) for name in value), default=0)
        for name, text in value.items():
            click.echo(f"  {name:<{width}}  {text}")
    click.echo()
    for hint in found["hints"]:
        click.echo(f"hint: {hint}")
    for problem in found["problems"]:
        click.echo(f"PROBLEM: {problem}")
    if not found["problems"]:
        exchanged = ", and files can be exchanged with other machines" if "selftest" in found else ""
        click.echo(f"Ready: pictures can be encoded and decoded{exchanged}.")
