"""Sizes and fidelities asked for are met, from the right side, or refused with the nearest there is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from conftest import small_photograph
from hpcm_codec.cli.main import main
from hpcm_codec.codec import Codec
from hpcm_codec.images import Picture
from hpcm_codec.targets import Target, TargetError, encode_to_target


@pytest.fixture(scope="module")
def picture() -> Picture:
    return Picture(small_photograph(200, 136))


def fidelity(codec: Codec, data: bytes, picture: Picture) -> float:
    error = np.mean((codec.decode(data).pixels.astype(float) - picture.pixels) ** 2)
    return float(10 * np.log10(255**2 / error))


def test_a_size_is_met_from_below_and_by_no_smaller_file_than_need_be(codec: Codec, picture: Picture) -> None:
    smallest, largest = (len(codec.encode(picture, quality)) for quality in (0, 100))
    limit = (smallest + largest) // 2
    reached = encode_to_target(codec, picture, Target("bytes", limit))
    assert len(reached.data) <= limit < len(codec.encode(picture, reached.quality + 0.5))
    assert len(reached.data) > 0.97 * limit
    assert reached.data == codec.encode(picture, reached.quality)


def test_a_fidelity_is_met_from_above_by_the_first_quality_that_does(codec: Codec, picture: Picture) -> None:
    wanted = sum(fidelity(codec, codec.encode(picture, quality), picture) for quality in (0, 100)) / 2
    reached = encode_to_target(codec, picture, Target("psnr", wanted))
    assert reached.psnr is not None and reached.psnr >= wanted
    assert reached.psnr == pytest.approx(fidelity(codec, reached.data, picture))
    assert fidelity(codec, codec.encode(picture, reached.quality - 0.5), picture) < wanted


def test_what_cannot_be_met_is_refused_with_the_nearest(codec: Codec, picture: Picture) -> None:
    with pytest.raises(TargetError, match=f"at quality 0 it takes {len(codec.encode(picture, 0))}"):
        encode_to_target(codec, picture, Target("bytes", 60))
    with pytest.raises(TargetError, match=r"quality 100 gives \d+\.\d+ dB"):
        encode_to_target(codec, picture, Target("psnr", 90))


def test_a_generous_size_gives_the_best_quality(codec: Codec, picture: Picture) -> None:
    assert encode_to_target(codec, picture, Target("bytes", 10**9)).quality == 100


def hpcm(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_takes_sizes_rates_and_fidelities(photograph: Path) -> None:
    by_rate = hpcm("encode", photograph, "--bpp", 1.5, "--json", "-f")
    assert by_rate.exit_code == 0, by_rate.output
    assert json.loads(by_rate.stdout)["bpp"] <= 1.5
    size = json.loads(by_rate.stdout)["bytes"]
    by_size = hpcm("encode", photograph, "--size", f"{size / 1000}KB", "--json", "-f")
    assert json.loads(by_size.stdout)["bytes"] == size
    by_fidelity = hpcm("encode", photograph, "--psnr", 28, "-f")
    assert by_fidelity.exit_code == 0 and ", psnr " in by_fidelity.stderr


@pytest.mark.parametrize(
    "arguments", [("-q", 5, "--bpp", 1), ("--size", "much"), ("--bpp", -1), ("--psnr", "nan"), ("--size", "0")]
)
def test_aims_that_make_no_sense_are_refused(photograph: Path, arguments: tuple[object, ...]) -> None:
    assert hpcm("encode", photograph, *arguments).exit_code == 2
    assert not photograph.with_suffix(".hpcm").exists()
