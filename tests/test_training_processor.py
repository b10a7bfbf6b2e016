"""What doctor and `train run` say about the processor and the allocator, to those who train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import small_photograph
from hpcm_codec.training import processor
from test_cli import hpcm


def test_the_kinds_of_matrix_products_follow_from_compiler_and_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for known, allowed, expected in (
        ({"__AMX_BF16__", "__AVX512BF16__"}, True, "AMX"),
        ({"__AMX_BF16__", "__AVX512BF16__"}, False, "AVX-512 bfloat16"),
        ({"__AVX512BF16__"}, True, "AVX-512 bfloat16"),
        ({"__AVX2__"}, True, "plain vectors"),
    ):
        monkeypatch.setattr(processor, "_compiled_for", lambda compiler, known=known: known)
        monkeypatch.setattr(processor, "_tiles_are_allowed", lambda allowed=allowed: allowed)
        assert processor.matrix_products() == expected


def test_what_the_compiler_knows_is_asked_of_the_compiler() -> None:
    from hpcm_codec.ops.build import find_compiler

    if (compiler := find_compiler("cpp")) is None:
        pytest.skip("no C++ compiler")
    assert "__cplusplus" in processor._compiled_for(compiler)
    assert processor._compiled_for(None) == processor._compiled_for(["/nowhere/c++"]) == set()


def test_tcmalloc_is_advised_with_its_path_or_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(processor, "preloaded_allocator", lambda: None)
    monkeypatch.setattr(processor, "_tcmalloc_file", lambda: Path("/lib/libtcmalloc.so.4"))
    assert processor.tcmalloc_advice() == "LD_PRELOAD=/lib/libtcmalloc.so.4"
    monkeypatch.setattr(processor, "_tcmalloc_file", lambda: None)
    advice = processor.tcmalloc_advice()
    assert advice is not None and advice.startswith("apt install libtcmalloc-minimal4") and "LD_PRELOAD=" in advice
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processor.tcmalloc_advice() is None
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(processor, "preloaded_allocator", lambda: "libtcmalloc.so.4")
    assert processor.tcmalloc_advice() is None


def test_a_preloaded_tcmalloc_is_seen(root: Path) -> None:
    library = processor._tcmalloc_file()
    if sys.platform != "linux" or library is None:
        pytest.skip("no tcmalloc here")
    code = "from hpcm_codec.training.processor import preloaded_allocator, tcmalloc_advice as a; print(preloaded_allocator(), a())"
    settings = {"PYTHONPATH": str(root), "LD_PRELOAD": str(library)}
    reported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **settings}
    )
    assert reported.stdout.startswith("libtcmalloc") and reported.stdout.endswith(" None\n"), reported.stderr


def test_doctor_has_a_section_on_training_and_no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "matrix_units", lambda: [])
    monkeypatch.setattr(processor, "matrix_products", lambda: "plain vectors")
    monkeypatch.setattr(processor, "preloaded_allocator", lambda: None)
    monkeypatch.setattr(processor, "tcmalloc_advice", lambda: "LD_PRELOAD=tc.so")
    found = json.loads(hpcm("doctor", "--json").stdout)
    reported = found["training"]
    assert reported["matrix units"] == "none for bfloat16" and reported["matrix products"] in (
        "plain vectors",
        "by torch",
    )
    assert "hpcm train run" in reported["memory"] and "LD_PRELOAD=tc.so" in reported["memory"]
    assert not any("tc.so" in text for text in found["hints"] + found["problems"])
    monkeypatch.setattr(processor, "preloaded_allocator", lambda: "libtcmalloc.so.4")
    monkeypatch.setattr(processor, "tcmalloc_advice", lambda: None)
    assert json.loads(hpcm("doctor", "--json").stdout)["training"]["memory"] == "libtcmalloc.so.4"
    monkeypatch.setenv("HPCM_OPS", "torch")
    assert json.loads(hpcm("doctor", "--json").stdout)["training"]["matrix products"] == "by torch"


def test_a_run_says_once_how_to_get_tcmalloc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcm_codec.training.loop import Trainer

    def nothing_but_saved(trainer: Trainer, *arguments: object) -> None:
        trainer.states.step = trainer.step

    monkeypatch.setattr(Trainer, "run", nothing_but_saved)
    Image.fromarray(small_photograph(130, 130)).save(tmp_path / "a.png")
    arguments = ("train", "run", "--data", tmp_path, "--crops", "0:64x1", "--steps", 1, "--device", "cpu")
    for name, advice, lines in (("one", "LD_PRELOAD=tc.so", 1), ("two", None, 0)):
        monkeypatch.setattr(processor, "tcmalloc_advice", lambda advice=advice: advice)
        done = hpcm(*arguments, "--out", tmp_path / name)
        assert done.exit_code == 0 and done.stderr.count("tcmalloc") == lines == done.stderr.count("tc.so")
    monkeypatch.setattr(processor, "tcmalloc_advice", lambda: "LD_PRELOAD=tc.so")
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "three").mkdir()
    assert (
        "tc.so"
        not in hpcm(
            *arguments[:2], "--data", tmp_path / "one" / "pictures.pack", *arguments[4:], "--out", tmp_path / "three"
        ).stderr
    )
