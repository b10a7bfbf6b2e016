"""tools/compare_phases.py: the same start and the same samples for all, runs that go on, and what the report makes of their rows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcm_codec.errors import FileError
from hpcm_codec.model.complexity import complexity_by_part, total
from hpcm_codec.model.config import CellConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training.light import load_weights
from hpcm_codec.weights.checkpoints import Checkpoint, save_checkpoint
from test_hpcm_phase1 import SMALL

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from phases import report, training, variants  # noqa: E402
from phases.latents import TRAIN, VALID  # noqa: E402

ATTENTION = CellConfig(width=16, heads=2, window=8, residual=True)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Small models in place of the variants, and a folder with stored latents; gives the model that they are of."""
    cells = (*SMALL.cells[:2], ATTENTION)
    for name in list(variants.VARIANTS):
        monkeypatch.setitem(variants.VARIANTS, name, replace(SMALL, name=name))
    monkeypatch.setitem(variants.VARIANTS, variants.REFERENCE, replace(SMALL, cells=cells))
    random = np.random.default_rng(3)
    for name, count in ((TRAIN, 12), (VALID, 5)):
        np.save(tmp_path / name, random.normal(0, 2, (count, SMALL.latent_channels, 8, 8)).astype(np.float16))
    torch.manual_seed(5)
    save_checkpoint(tmp_path / "start.safetensors", SMALL, HPCM(SMALL).state_dict(), {})
    return load_weights(str(tmp_path / "start.safetensors"))


def test_narrow_attention_costs_what_phase_1_costs() -> None:
    cost = {
        name: total(complexity_by_part(variants.VARIANTS[name])).kmac_per_pixel
        for name in ("attention-lite", "phase1-lite")
    }
    assert abs(cost["attention-lite"] / cost["phase1-lite"] - 1) < 0.005


def test_all_variants_start_alike(small: Checkpoint) -> None:
    baseline, phase = (
        training.starting_model(name, 4, small).state_dict() for name in ("baseline-lite", "phase1-lite")
    )
    other = training.starting_model("phase1-lite", 5, small).state_dict()
    common = [name for name in baseline if name in phase and baseline[name].shape == phase[name].shape]
    assert any(name.startswith("context.context_nets.") for name in common)
    assert not any(name.startswith(("g_a.", "g_s.")) for name in phase)
    assert all(torch.equal(baseline[name], phase[name]) for name in common)
    hyper = [name for name in phase if name.startswith(("h_", "hyper", "rate_control"))]
    assert all(torch.equal(phase[name], small.weights[name]) for name in hyper)
    assert not torch.equal(phase["context.prior_s3.head.weight"], other["context.prior_s3.head.weight"])


def test_what_decides_the_distortion_is_not_trained(small: Checkpoint, tmp_path: Path) -> None:
    run = training.Run(tmp_path, "phase1-lite", 0, small)
    run.stretch(2)
    after = run.model.state_dict()
    for name in ("log_gain", "log_inverse_correction"):
        assert torch.equal(after[f"rate_control.{name}"], small.weights[f"rate_control.{name}"])
    assert not torch.equal(after["rate_control.log_hyper_gain"], small.weights["rate_control.log_hyper_gain"])


def test_a_run_goes_on_where_it_was(small: Checkpoint, tmp_path: Path) -> None:
    whole = training.Run(tmp_path, "phase1-lite", 0, small)
    whole.stretch(4)
    for _ in range(2):
        training.Run(tmp_path, "phase2-lite", 0, small).stretch(2)  # the same model here, under another name
    resumed = training.Run(tmp_path, "phase2-lite", 0, small)
    assert [row.step for row in resumed.rows] == [0, 2, 4]
    assert resumed.rows[-1].bpp == pytest.approx(whole.rows[-1].bpp, rel=1e-3)
    assert whole.rows[0].bpp == resumed.rows[0].bpp
    assert resumed.seconds > resumed.rows[1].seconds > 0


def test_training_lowers_the_bits(small: Checkpoint, tmp_path: Path) -> None:
    run = training.Run(tmp_path, "phase1-lite", 1, small)
    run.stretch(60)
    assert all(after < 0.98 * before for after, before in zip(run.rows[-1].bpp, run.rows[0].bpp, strict=True))


def test_missing_latents_are_named(small: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / VALID).unlink()
    with pytest.raises(FileError, match=r"no stored latents.*command `latents`"):
        training.Run(tmp_path, "phase1-lite", 0, small)


def write_runs(folder: Path, savings: dict[str, float]) -> None:
    """Rows of two seeds: the reference's bits halve over 200 steps, the others need a share less after the start."""
    for name, share in savings.items():
        for seed, change in ((0, -0.01), (1, 0.01)):
            rows = [
                {
                    "step": step,
                    "seconds": step * (1 + share),
                    "bpp": [b * (1 - share + change) for b in (0.1, 0.4, 0.9)],
                }
                for step in (0, 100, 200)
            ]
            rows[0]["bpp"] = [1.0, 1.0, 1.0]
            (folder / f"{name}-{seed}.json").write_text(json.dumps(rows))


def test_report(tmp_path: Path) -> None:
    write_runs(tmp_path, {"baseline-lite": 0.0, "phase1-lite": 0.05, "phase2-lite": -0.02})
    curve = tmp_path / "curve.txt"
    curve.write_text(json.dumps({
        "qualities": [0, 50, 100], "results": {"bpp": [0.1, 0.4, 0.9], "psnr-rgb": [28.0, 32.0, 36.0]},
    }))  # fmt: skip
    (tmp_path / "out").mkdir()
    report.write_report(tmp_path, curve, tmp_path / "out" / "phases")
    text = (tmp_path / "out" / "phases.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| phase1-lite")]
    assert len(lines) == 2 and "+5.0" in lines[0]
    assert text.index("| phase1-lite") < text.index("| baseline-lite") < text.index("| phase2-lite")
    assert "The order has not changed since step 100." in text
    assert (tmp_path / "out" / "phases.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "out" / "phases.json").read_text())
    assert set(record["runs"]) == {"baseline-lite", "phase1-lite", "phase2-lite"}


def test_savings_at_equal_seconds_favour_the_faster(tmp_path: Path) -> None:
    rows = [training.Row(0, 0.0, (1.0,) * 3), training.Row(100, 50.0, (0.5,) * 3)]
    slow = [training.Row(0, 0.0, (1.0,) * 3), training.Row(100, 100.0, (0.5,) * 3)]
    runs = {"baseline-lite": [rows], "phase1-lite": [slow]}
    assert report.seconds_in_common(runs) == 50.0
    found = report.savings(runs, report.at_seconds(50.0), (4.0, 4.0, 4.0))
    assert found["phase1-lite"].percent == pytest.approx(-50.0)
    assert found["phase1-lite"].decibels == pytest.approx(-4.0 * np.log(1.5))


def test_runs_without_the_reference_are_refused(tmp_path: Path) -> None:
    write_runs(tmp_path, {"phase1-lite": 0.05, "phase2-lite": -0.02})
    with pytest.raises(FileError, match="no runs of baseline-lite"):
        report.runs_of(tmp_path)


def test_command_line(tmp_path: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools" / "compare_phases.py")]
    done = subprocess.run([*tool, "train", str(tmp_path), "--variants", "phase9"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("compare_phases: ") and "there are baseline-lite" in done.stderr
    assert "Traceback" not in done.stderr
