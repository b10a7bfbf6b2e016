"""What `hpcm bench` measures: the stages add up, work is counted as the codec does it, memory is a fresh process's."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from conftest import few_extremes
from hpcm_codec.benchmark import cells, growth, measure, pictures, process, tables, timing
from hpcm_codec.benchmark.meter import Meter
from hpcm_codec.benchmark.stages import STAGES, STEPS
from hpcm_codec.benchmark.work import work_by_stage
from hpcm_codec.errors import HpcmError, UsageError
from hpcm_codec.images import Picture, write_picture
from hpcm_codec.model.complexity import complexity_by_part
from hpcm_codec.model.config import CellConfig, preset
from hpcm_codec.tiles.grid import HALO_LATENTS

if TYPE_CHECKING:
    from hpcm_codec.codec import Codec

# the lattice of a 256×128 picture is whole windows, or one smaller one, at every scale: nothing is padded
WIDTH, HEIGHT = 256, 128


@pytest.fixture
def ways(tmp_path: Path, codec: Codec) -> dict[timing.Action, tuple[Path, Path]]:
    """A small picture file, and the .hpcm file made of it: source and target of both ways."""
    original, coded, decoded = (tmp_path / name for name in ("a.png", "a.hpcm", "b.png"))
    write_picture(Picture(pictures.synthetic_photograph(WIDTH, HEIGHT)), original)
    timing.go("encode", codec, original, coded, 50, Meter(time.perf_counter), "codec")
    return {"encode": (original, coded), "decode": (coded, decoded)}


# -- stages -----------------------------------------------------------------------------------------------------------


def test_a_moment_is_charged_to_the_innermost_stage_only() -> None:
    now = 0
    meter = Meter(lambda: now)
    with meter.stage("outer"):
        now += 1
        with meter.stage("inner"):
            now += 10
            meter.switch("switched")
            now += 100
        now += 1000
    now += 10_000  # outside every stage
    assert meter.charged == {"outer": 1001, "inner": 10, "switched": 100}


@pytest.mark.usefixtures("one_thread")
def test_stages_add_up_to_the_whole_and_every_stage_is_seen(
    codec: Codec, ways: dict[timing.Action, tuple[Path, Path]]
) -> None:
    seen = set()
    absent_stages: dict[timing.Action, str] = {"encode": "synthesis", "decode": "analysis"}
    for action, absent in absent_stages.items():
        meter = Meter(time.perf_counter)
        start = time.perf_counter()
        with codec.observed(meter):
            timing.go(action, codec, *ways[action], 50, meter, "other")
        whole = time.perf_counter() - start
        # beside the stages there are only the hooks themselves
        assert whole / 2 < sum(meter.charged.values()) <= whole
        assert absent not in meter.charged
        seen |= {stage for stage, seconds in meter.charged.items() if seconds > 0}
    assert seen == set(STAGES)


@pytest.mark.usefixtures("one_thread")
def test_without_its_observer_the_codec_reports_nothing(codec: Codec) -> None:
    picture = Picture(pictures.synthetic_photograph(64, 64))
    expected = codec.encode(picture, 50)
    meter = Meter(time.perf_counter)
    with codec.observed(meter), meter.stage("other"):
        assert codec.encode(picture, 50) == expected
        with pytest.raises(UsageError):
            codec.encode(picture, 1000)
    charged = dict(meter.charged)
    assert codec.encode(picture, 50) == expected
    codec.decode(expected)
    assert meter.charged == charged
    assert not any(engine.observer.watches for engine in codec.engines.values())


def test_the_codec_is_timed_without_its_files_and_with_them(
    codec: Codec, ways: dict[timing.Action, tuple[Path, Path]]
) -> None:
    timed = timing.time_way(codec, lambda meter, rest: timing.go("decode", codec, *ways["decode"], 50, meter, rest), 2)
    assert len(timed.all_seconds) == 2
    assert min(timed.all_seconds) <= timed.seconds <= max(timed.all_seconds)
    assert timed.file_to_file > timed.seconds
    assert timed.stages["write"] > 0 and timed.stages["analysis"] == 0 and set(timed.stages) == set(STAGES)
    assert ways["decode"][1].read_bytes().startswith(b"\x89PNG")


# -- work -------------------------------------------------------------------------------------------------------------


def test_integer_operations_are_those_that_decoding_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcm_codec.codec import load_codec
    from hpcm_codec.ops import integer

    monkeypatch.setenv("HPCM_OPS", "torch")
    codec = load_codec(device="cpu")
    done = 0
    linear, depthwise, attention = integer.linear, integer.depthwise, integer.window_attention

    def counted(operator: Any, amount: Any) -> Any:
        def call(x: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal done
            weights = [options["weights"]] if "weights" in options else []
            done += 2 * amount(x, *arguments, *weights)
            return operator(x, *arguments, **options)

        return call

    def in_linear(*parts: Any) -> int:
        """Of one input or several and the weights of all of them."""
        rows: int = parts[-1].weight.shape[0]
        return rows * sum(x.numel() for x in parts[:-1])

    monkeypatch.setattr(integer, "linear", counted(linear, in_linear))
    monkeypatch.setattr(integer, "doubled", counted(integer.doubled, in_linear))
    branch = integer.branch

    def both_layers(*inputs: Any, expand: Any, project: Any, **options: Any) -> Any:
        nonlocal done
        places = inputs[0].numel() // inputs[0].shape[-1]
        done += 2 * places * (expand.weight.numel() + project.weight.numel())
        return branch(*inputs, expand=expand, project=project, **options)

    monkeypatch.setattr(integer, "branch", both_layers)
    several = counted(integer.together, lambda x, layers: sum(in_linear(x, layer) for layer in layers))
    monkeypatch.setattr(integer, "together", several)
    monkeypatch.setattr(
        integer, "depthwise", counted(depthwise, lambda x, w: x.numel() * math.prod(w.kernel.shape[:2]))
    )

    def products(q: Any, k: Any, v: Any, heads: int, window: int, *_: Any) -> int:
        """Of queries and keys, and of weights and values."""
        return 2 * q.numel() * min(window, q.shape[0]) * min(window, q.shape[1])

    monkeypatch.setattr(integer, "window_attention", counted(attention, products))
    data = codec.encode(Picture(pictures.synthetic_photograph(WIDTH, HEIGHT)))
    meter = Meter(lambda: done)
    with codec.observed(meter), meter.stage("other"):
        codec.decode(data)
    expected = work_by_stage(codec.config, WIDTH, HEIGHT, "exact", 1, 1)
    for stage in ("hyper synthesis", *STEPS):
        # in floating point there are also the rate's factors: a few thousand operations for each of a step's blocks
        assert meter.charged.get(stage, 0) == pytest.approx(expected[stage].operations, rel=1e-3, abs=5e4), stage


def test_work_covers_tiles_with_their_halos_and_grows_with_the_picture() -> None:
    config = preset("phase1-lite")
    one, four = (work_by_stage(config, side, side, "exact", 10, 20) for side in (1024, 2048))
    assert four["s3 step 1"].operations == 4 * one["s3 step 1"].operations
    halo = (1024 + 16 * HALO_LATENTS) ** 2 / 1024**2  # each of the four tiles sees its neighbours' latents on two sides
    assert four["analysis"].operations == pytest.approx(4 * halo * one["analysis"].operations, rel=1e-3)
    assert four["container"].bytes == 20 and one["read"].bytes == 20 + 3 * 1024**2


def test_least_bytes_are_what_goes_in_weights_and_what_comes_out() -> None:
    config = preset("phase1-lite")
    found = work_by_stage(config, 64, 64, "float", 10, 20)
    latents, hyper = config.latent_channels * 16, config.hyper_channels
    # context (scales and means) and latents, in and out, at a sixteenth of the positions; no layer is used
    assert found["s1 step 1"].bytes == 4 * 2 * 3 * latents // 16
    assert found["analysis"].bytes == 4 * (3 * 64 * 64 + latents + complexity_by_part(config)["g_a"].parameters)
    assert found["rANS coding"].bytes == 8 * (latents + hyper) + 10


# -- fresh processes --------------------------------------------------------------------------------------------------


def test_peak_memory_of_a_process_counts_what_it_held_and_not_what_its_parent_holds() -> None:
    held = np.ones(400_000_000 // 8)  # 400 MB here
    code = (
        "from hpcm_codec.evaluation.machine import peak_memory_of_this_process as peak\n"
        "before = peak(); block = bytearray(b'x') * 150_000_000; del block; print(before, peak())"
    )
    root = str(Path(process.__file__).resolve().parents[2])
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    before, after = map(int, child.stdout.split())
    assert 0 < before < 200_000_000 < held.nbytes
    assert 140_000_000 < after - before < 200_000_000


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "a.hpcm"
    broken.write_bytes(b"nonsense, but long enough to look at")
    job = process.Run("decode", str(broken), str(tmp_path / "b.png"), 50, "phase1-lite", "cpu", 1)
    with pytest.raises(HpcmError, match=r"measures decode failed.*not a \.hpcm"):
        process.run_fresh(job)


def test_a_fresh_process_measures_time_by_stage_and_memory(tmp_path: Path) -> None:
    original, coded = tmp_path / "a.ppm", tmp_path / "a.hpcm"
    write_picture(Picture(pictures.synthetic_photograph(64, 64)), original)
    found = process.run_fresh(process.Run("encode", str(original), str(coded), 50, "phase1-lite", "cpu", 1))
    assert set(found.stages) == set(STAGES) and found.stages["synthesis"] == 0
    assert sum(found.stages.values()) == pytest.approx(found.file_to_file) and 0 < found.seconds < found.file_to_file
    assert found.peak_memory_bytes > 1e8 and found.device_memory_bytes is None
    assert coded.is_file() and found.profile == "exact"


# -- a GPU, as far as that can be tested without one ---------------------------------------------------------------


def test_a_gpu_is_waited_for_whenever_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    read = timing.clock(timing.waiter("cuda:1"))
    assert read() <= read()
    assert waited == ["cuda:1", "cuda:1"]
    timing.clock(timing.waiter("cpu"))()
    assert len(waited) == 2


def test_memory_of_a_cell_on_a_gpu_is_what_its_allocator_held_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    work = cells._Work(torch.nn.Identity(), (8,), 4, 4, "cpu")
    work.device = "cuda"
    resets: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1700)
    assert work.figures()["memory_bytes"] == 700 + 4 * 8 * 16
    assert resets == ["cuda"]


# -- how many runs, and what is left out ------------------------------------------------------------------------------


def outcome(seconds: float) -> process.RunResult:
    return process.RunResult(
        seconds, seconds + 0.1, dict.fromkeys(STAGES, seconds / 21), 10**9, None, "exact", "00" * 8
    )


def test_a_run_that_takes_long_is_the_only_one(codec: Codec, tmp_path: Path) -> None:
    long = outcome(measure.LONG_ENOUGH + 1)
    timed = measure._timed(codec, "decode", tmp_path / "none.hpcm", tmp_path / "b.png", measure.Settings(), long)
    assert timed.all_seconds == (long.seconds,) and timed.stages == long.stages


def test_sizes_that_would_take_too_long_are_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {action: {"seconds": 2.0} for action in timing.ACTIONS}
    monkeypatch.setattr(measure, "_measure", lambda *_: dict(ways))
    settings = measure.Settings(longest=7)
    found = list(measure.measure_models(("phase1-lite",), [(256, 128), (64, 64), (64, 128)], settings))
    assert [(one["width"], one["height"], "left_out" in one) for one in found] == [
        (64, 64, False),
        (64, 128, False),
        (256, 128, True),
    ]
    assert found[-1]["left_out"] == "about 8 s for one way"


def test_a_preset_without_a_checkpoint_gets_the_same_weights_every_time(tmp_path: Path) -> None:
    from hpcm_codec.benchmark.weights import is_untrained, random_checkpoint
    from hpcm_codec.weights.checkpoints import load_checkpoint

    assert is_untrained("phase1") and not is_untrained("phase1-lite") and not is_untrained("nonsense")
    # the smallest preset will do: what is tested is the seed
    first, second = (load_checkpoint(str(random_checkpoint("phase1-lite", tmp_path))) for _ in range(2))
    assert first.identity == second.identity
    assert first.exact is None


def test_a_preset_without_a_checkpoint_can_have_an_exact_profile(tmp_path: Path) -> None:
    from hpcm_codec.benchmark.weights import random_checkpoint
    from hpcm_codec.codec import load_codec

    with few_extremes():
        path = random_checkpoint("phase1-lite", tmp_path, exact=True)
    assert load_codec(str(path), "cpu").profile == "exact"


# -- growth, cells, tables --------------------------------------------------------------------------------------------


def test_the_exponent_is_that_of_the_power_law() -> None:
    sizes = [1e5, 1e6, 3e7]
    assert growth.exponent(sizes, [7 * size**0.8 for size in sizes]) == pytest.approx(0.8)
    assert growth.exponent(sizes, [5.0, 5.0, 5.0]) == pytest.approx(0)


def test_growth_is_measured_by_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[tuple[str, str]] = Counter()

    def run(job: process.Run) -> process.RunResult:
        seen[job.action, Path(job.source).suffix] += 1
        pixels = Path(job.source).stat().st_size if job.action == "encode" else 64 * 64 * 3
        if job.action == "encode":
            Path(job.target).write_bytes(b"x" * 10)
        return outcome(pixels / 1e3)

    monkeypatch.setattr(growth, "run_fresh", run)
    found = growth.growth("phase1-lite", [(64, 64), (128, 128), (256, 256)])
    assert set(seen) == {("encode", ".ppm"), ("decode", ".hpcm")}
    assert [point["bytes"] for point in found["points"]] == [10, 10, 10]
    assert found["exponents"]["encode"]["seconds"] == pytest.approx(1, abs=0.01)
    assert found["exponents"]["decode"]["peak_memory_bytes"] == 0


def test_cells_are_compared_by_operations_memory_and_time() -> None:
    chosen = [
        cells.Candidate("baseline", CellConfig(window=8)),
        cells.Candidate("narrow", CellConfig(kind="rwkv", width=64, hidden_rate=1.0, residual=True)),
    ]
    found = cells.compare_cells(128, 128, seconds=0, chosen=chosen)
    baseline, narrow = found["cells"]
    # four 1×1 convolutions of 640 channels, and attention in windows of 64 latents, for 64 latents
    assert baseline["operations"] == 2 * 64 * (4 * 640 * 640 + 2 * 64 * 640)
    assert narrow["operations"] < baseline["operations"] / 4
    weights_and_arguments = 4 * (baseline["parameters"] + 2 * 640 * 64)
    assert weights_and_arguments + 4 * 640 * 64 <= baseline["memory_bytes"] < 2 * weights_and_arguments
    assert baseline["seconds"] > 0 and baseline["rounds"] == cells.FEWEST_ROUNDS


def test_phase1_slim_has_the_planned_operations() -> None:
    by_preset = {candidate.preset: candidate for candidate in cells.candidates()}
    assert {"hpcm-base", "phase1", "phase1-slim"} < set(by_preset)
    chosen = [by_preset["hpcm-base"], by_preset["phase1-slim"]]
    baseline, slim = cells.compare_cells(256, 256, seconds=0, chosen=chosen)["cells"]
    assert slim["operations"] <= (1 + cells.TARGET["operations"]) * baseline["operations"]
    assert slim["memory_bytes"] <= (1 + cells.TARGET["memory_bytes"]) * baseline["memory_bytes"]


def test_a_cell_meets_the_target_only_in_everything() -> None:
    baseline = {"operations": 100, "memory_bytes": 100, "seconds": 1.0}
    assert cells.meets_target({"operations": 73, "memory_bytes": 78, "seconds": 0.71}, baseline)
    for worse in ({"operations": 74}, {"memory_bytes": 79}, {"seconds": 0.72}):
        assert not cells.meets_target({"operations": 73, "memory_bytes": 78, "seconds": 0.71} | worse, baseline)


def test_a_share_of_a_ceiling_is_operations_over_time() -> None:
    way = {
        "seconds": 0.5,
        "file_to_file": 0.6,
        "all_seconds": [0.5],
        "shell_seconds": None,
        "device_memory_bytes": None,
    }
    stages = dict.fromkeys(STAGES, 0.0) | {"s3 step 1": 0.1, "analysis": 0.2}
    measured = {
        "profile": "exact",
        "encode": way | {"stages": stages, "peak_memory_bytes": 5 * 10**8},
        "decode": way | {"stages": stages | {"analysis": 0.0}, "peak_memory_bytes": 5 * 10**8},
        "work": {"s3 step 1": {"operations": 10**10, "bytes": 10**9}, "analysis": {"operations": 10**10, "bytes": 0}},
    }
    ceilings: dict[str, float | None] = {
        "integer_operations": 4e11,
        "float32_operations": 1e11,
        "triad_bytes": 4e10,
        "copy_bytes": 4e10,
    }
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1]
        for line in tables.stage_table(measured, ceilings).splitlines()
    }
    assert [cell.strip() for cell in rows["s3 step 1"]] == [
        *("100.0 ms", "100.0 ms", "10.00", "100.0", "25%", "1000.00", "10.0", "25%"),
    ]
    assert [cell.strip() for cell in rows["analysis"]] == ["200.0 ms", "–", "10.00", "50.0", "50%", "–", "–", "–"]
    assert json.dumps(rows).count("1 run") == 2


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_the_picture_is_cut_from_the_middle_or_mirrored_until_it_fills() -> None:
    source = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert np.array_equal(pictures.fitted(source, 3, 3), source[1:4, 2:5])
    wide = pictures.fitted(source, 20, 5)
    assert np.array_equal(wide[:, :7], source)
    assert np.array_equal(wide[:, 7:14], source[:, ::-1])
    assert np.array_equal(wide[:, 14:20], source[:, :6])


def test_the_stand_in_for_a_photograph_is_the_same_every_time_and_neither_flat_nor_noise() -> None:
    first, second = pictures.synthetic_photograph(96, 64), pictures.synthetic_photograph(96, 64)
    assert first.shape == (64, 96, 3)
    assert np.array_equal(first, second)
    values = first[..., 1].astype(float)
    neighbours = np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1]
    assert 0.6 < neighbours < 0.995
    assert values.std() > 20
