"""`hpcm bench`: the stages add up, memory is a fresh process's, and the picture has the size asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hpcm_codec import container
from hpcm_codec.cli.bench import command, parse_size
from hpcm_codec.errors import FileError, HpcmError, UsageError
from hpcm_codec.evaluation import machine, speed
from hpcm_codec.images import Picture


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread for a while: on cores that others use too, waiting for a second one takes most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_moment_is_charged_to_the_innermost_stage_only() -> None:
    clock = speed.StageClock(lambda: None)
    with clock.stage("other"):
        time.sleep(0.02)
        with clock.stage("context"):
            time.sleep(0.03)
            clock.wrap(time.sleep, "range coding")(0.05)
            time.sleep(0.03)
        time.sleep(0.02)
    seconds = clock.seconds
    assert seconds["other"] >= 0.04
    assert seconds["context"] >= 0.06
    assert seconds["range coding"] >= 0.05
    assert seconds["range coding"] < 0.05 + 0.06  # not also what surrounds it
    assert seconds["analysis"] == 0


@pytest.mark.usefixtures("one_thread")
def test_stages_add_up_to_the_whole_and_every_stage_is_seen() -> None:
    from hpcm_codec.codec import load_codec

    codec = load_codec(device="cpu")
    picture = Picture(speed.synthetic_photograph(128, 64))
    data = codec.encode(picture, 50)
    seen = set()
    for work, absent in ((lambda: codec.encode(picture, 50), "synthesis"), (lambda: codec.decode(data), "analysis")):
        clock = speed.StageClock(lambda: None)
        start = time.perf_counter()
        with speed.stages_wrapped(codec, clock), clock.stage("other"):
            work()
        whole = time.perf_counter() - start
        assert sum(clock.seconds.values()) == pytest.approx(whole, rel=0.05, abs=0.002)
        assert clock.seconds[absent] == 0
        seen |= {stage for stage, seconds in clock.seconds.items() if seconds > 0}
    assert seen == set(speed.STAGES)


@pytest.mark.usefixtures("one_thread")
def test_taking_the_clock_away_leaves_the_codec_as_it_was() -> None:
    from hpcm_codec.codec import load_codec
    from hpcm_codec.entropy.range_coder import RangeEncoder
    from hpcm_codec.entropy.range_decoder import RangeDecoder

    codec = load_codec(device="cpu")
    picture = Picture(speed.synthetic_photograph(64, 64))
    before = (RangeEncoder.encode, RangeDecoder.__init__, container.write_stream, dict(vars(codec.model)))
    expected = codec.encode(picture, 50)
    clock = speed.StageClock(lambda: None)
    with speed.stages_wrapped(codec, clock):
        assert codec.encode(picture, 50) == expected
        with pytest.raises(UsageError):
            codec.encode(picture, 1000)
    assert (RangeEncoder.encode, RangeDecoder.__init__, container.write_stream, dict(vars(codec.model))) == before
    charged = dict(clock.seconds)
    codec.encode(picture, 50)
    assert clock.seconds == charged


def test_peak_memory_of_a_process_counts_what_it_held_and_not_what_its_parent_holds() -> None:
    held = np.ones(400_000_000 // 8)  # 400 MB here
    code = (
        "from hpcm_codec.evaluation.machine import peak_memory_of_this_process as peak\n"
        "before = peak(); block = bytearray(b'x') * 150_000_000; del block; print(before, peak())"
    )
    root = str(Path(speed.__file__).resolve().parents[2])
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    before, after = map(int, child.stdout.split())
    assert 0 < before < 200_000_000 < held.nbytes
    assert 140_000_000 < after - before < 200_000_000


def test_the_picture_is_cut_from_the_middle_or_mirrored_until_it_fills() -> None:
    source = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert np.array_equal(speed.fitted(source, 3, 3), source[1:4, 2:5])
    wide = speed.fitted(source, 20, 5)
    assert np.array_equal(wide[:, :7], source)
    assert np.array_equal(wide[:, 7:14], source[:, ::-1])
    assert np.array_equal(wide[:, 14:20], source[:, :6])


def test_the_stand_in_for_a_photograph_is_the_same_every_time_and_neither_flat_nor_noise() -> None:
    first, second = speed.synthetic_photograph(96, 64), speed.synthetic_photograph(96, 64)
    assert first.shape == (64, 96, 3)
    assert np.array_equal(first, second)
    values = first[..., 1].astype(float)
    neighbours = np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1]
    assert 0.6 < neighbours < 0.995
    assert values.std() > 20


def test_sizes_are_width_then_height() -> None:
    assert parse_size("768x512") == (768, 512)
    assert parse_size("1×2") == (1, 2)
    for bad in ("", "768", "768x", "0x5", "5x-1", "99999x1", "1x1x1"):
        with pytest.raises(UsageError):
            parse_size(bad)


@pytest.mark.usefixtures("one_thread")
def test_the_command_measures_both_directions_and_names_the_machine(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    arguments = ["--size", "128x64", "--runs", "2", "--device", "cpu", "--threads", "1", "--json", str(output)]
    result = CliRunner().invoke(command, arguments)
    assert result.exception is None, result.exception
    figures = json.loads(output.read_text())
    assert (figures["width"], figures["height"]) == (128, 64)
    for action in ("encode", "decode"):
        measured = figures[action]
        assert min(measured["all_seconds"]) <= measured["seconds"] <= max(measured["all_seconds"])
        assert len(measured["all_seconds"]) == 2
        assert sorted(measured["stages"]) == sorted(speed.STAGES)
        # torch alone is above the lower bound; the upper is what we promise for a picture 48 times as large
        assert 5e7 < measured["peak_memory_bytes"] < 1.5e9
    assert figures["machine"]["processor"] == machine.processor_name()
    assert machine.processor_name() in result.output
    assert "range coding" in result.output
    assert isinstance(CliRunner().invoke(command, arguments).exception, FileError)  # not overwritten


def test_a_memory_process_that_fails_says_why() -> None:
    with pytest.raises(HpcmError, match=r"memory of decode failed.*not a \.hpcm"):
        speed.peak_memory("decode", b"nonsense, but long enough to look at", 50, "phase1-lite", "cpu", None)
