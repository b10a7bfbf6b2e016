"""`hpcm eval`: what is measured, the results file, Bjøntegaard deltas, and the command itself."""

from __future__ import annotations

import importlib.util
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from hpcm_codec.cli.eval import DEFAULT_QUALITIES, command, parse_qualities
from hpcm_codec.errors import FileError, UsageError
from hpcm_codec.evaluation import bjontegaard, campaign, runner, tables
from hpcm_codec.evaluation.codecs import PillowCodec, installed_formats
from hpcm_codec.evaluation.datasets import find_dataset
from hpcm_codec.images import Picture, read_picture

ANCHORS = Path(__file__).resolve().parents[2] / "shared" / "anchors"
TIMES = ("encoding_time", "decoding_time")


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [
        128 + 80 * np.sin((rows + columns * (1 + c)) / 17) + random.normal(0, 6, (height, width)) for c in range(3)
    ]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, size in enumerate([(48, 40), (33, 64)]):
        Image.fromarray(photograph(*size, seed=number)).save(pictures / f"p{number}.png")
    return pictures


class PlainCodec:
    """Rounds samples to multiples of 100 / (quality + 1) and stores them as PNG."""

    def encode(self, picture: Picture, quality: float) -> bytes:
        step = 100 / (quality + 1)
        rounded = ((picture.pixels / step).round() * step).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(rounded).save(buffer, "PNG")
        return buffer.getvalue()

    def decode(self, data: bytes) -> Picture:
        return read_picture(data)


@dataclass
class Encoded:
    data: bytes
    header: Any
    latents: Any


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


# ----------------------------------------------------------------------------------------------------------- measuring


def test_a_row_holds_the_size_of_the_whole_file_and_the_error_of_what_was_decoded(folder: Path) -> None:
    picture = read_picture(folder / "p0.png")
    codec = PlainCodec()
    row = runner.measure(codec, picture, 4, "p0.png")
    data = codec.encode(picture, 4)
    assert row.bytes == len(data)
    assert row.bpp == pytest.approx(8 * len(data) / (48 * 40), abs=1e-6)
    error = (picture.pixels.astype(float) - codec.decode(data).pixels) ** 2
    assert row.psnr == pytest.approx(10 * math.log10(255**2 / error.mean()), abs=1e-6)
    assert row.ms_ssim is None  # too small for five scales


def test_metadata_and_transparency_are_not_counted(folder: Path) -> None:
    picture = read_picture(folder / "p0.png")
    laden = Picture(picture.pixels, np.zeros((48, 40), np.uint8), icc=bytes(5000), exif=bytes(5000), xmp=bytes(5000))
    plain, with_more = (runner.measure(PillowCodec("jpeg"), p, 50, "p") for p in (picture, laden))
    assert with_more.bytes == plain.bytes


def test_verify_finds_a_decoder_that_differs_from_the_encoder_in_one_sample(folder: Path) -> None:
    class Forgetful(PlainCodec):
        off_by = 0

        def encode_with_latents(self, picture: Picture, quality: float) -> Encoded:
            from hpcm_codec.bitstream import container

            header = container.Header(picture.width, picture.height, 100, bytes(8), grey=False, float_profile=True)
            streams = container.TileStreams(b"", b"", b"", b"", symbol_check=0)
            return Encoded(container.write_stream(container.HpcmStream(header, (streams,), {})), header, picture.pixels)

        def decode(self, data: bytes) -> Picture:
            return read_picture(folder / "p0.png")

        def reconstruct(self, latents: NDArray[np.uint8], header: object) -> NDArray[np.uint8]:
            changed = latents.copy()
            changed[5, 5, 1] ^= self.off_by
            return changed

    codec, picture = Forgetful(), read_picture(folder / "p0.png")
    assert runner.measure(codec, picture, 50, "p0.png", verify=True).psnr == math.inf
    codec.off_by = 1
    with pytest.raises(runner.MismatchError, match=r"p0\.png at quality 50"):
        runner.measure(codec, picture, 50, "p0.png", verify=True)
    with pytest.raises(UsageError, match="--verify"):
        runner.measure(PlainCodec(), picture, 50, "p0.png", verify=True)


def test_means_are_over_pictures_at_each_quality(folder: Path) -> None:
    names, codec = find_dataset(folder).names, PlainCodec()
    rows = [runner.measure(codec, read_picture(folder / name), quality, name) for name in names for quality in (9, 1)]
    low, high = runner.means_of(rows)
    assert (low.quality, high.quality) == (1, 9)
    assert low.bpp == pytest.approx((rows[1].bpp + rows[3].bpp) / 2, abs=1e-6)
    assert high.psnr == pytest.approx((rows[0].psnr + rows[2].psnr) / 2, abs=1e-6)


def test_a_higher_quality_that_makes_smaller_files_or_worse_pictures_is_named() -> None:
    figures = [(10, 0.5, 30.0), (20, 0.4, 31.0), (30, 0.6, 30.9), (40, 0.6, 30.9)]
    rows = [runner.Row("p.png", q, 200, 200, 100, bpp, psnr, None, 0.1, 0.2) for q, bpp, psnr in figures]
    assert tables.in_words_where_falling(runner.means_of(rows)) == [
        "bpp falls from 0.5000 to 0.4000 between qualities 10 and 20",
        "psnr falls from 31.000 to 30.900 between qualities 20 and 30",
    ]
    assert tables.in_words_where_falling(runner.means_of(rows[1:2])) == []


def test_decibels_of_ms_ssim_are_of_the_mean_and_small_pictures_are_reported() -> None:
    rows = [
        runner.Row(f"{n}.png", 5, 200, 200, 100, 1.0, 30.0, value, 0.1, 0.2)
        for n, value in enumerate([0.9, 0.99, None])
    ]
    summary = runner.summarise("name", "description", rows)
    assert summary["results"]["ms-ssim-rgb"] == [pytest.approx(0.945)]
    assert summary["results"]["ms-ssim-rgb-db"] == [pytest.approx(-10 * math.log10(0.055), abs=1e-5)]
    assert "without 1 pictures" in summary["description"]


def test_figures_that_are_infinite_are_null_in_the_results_and_the_file_is_json() -> None:
    row = runner.Row("p.png", 5, 200, 200, 100, 1.0, math.inf, 1.0, 0.1, 0.2)
    summary = runner.summarise("name", "description", [row])
    assert summary["results"]["psnr-rgb"] == summary["results"]["ms-ssim-rgb-db"] == [None]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


@pytest.mark.parametrize("kind", installed_formats())
def test_ordinary_codecs_give_better_pictures_for_more_bits(kind: str) -> None:
    codec, picture = PillowCodec(kind), Picture(photograph(160, 200))
    rows = [runner.measure(codec, picture, quality, "p") for quality in (10.0, 50.0, 90.0)]
    assert [row.bytes for row in rows] == sorted({row.bytes for row in rows})
    assert [row.psnr for row in rows] == sorted({row.psnr for row in rows})
    for bad in (12.5, 101, -1):
        with pytest.raises(UsageError, match="whole qualities"):
            codec.encode(picture, bad)


# --------------------------------------------------------------------------------------------------------- Bjøntegaard

RATES = (0.1, 0.2, 0.4, 0.7, 1.1)
QUALITIES = (27.0, 30.0, 33.0, 35.5, 37.5)


def test_a_fifth_less_rate_at_every_quality_is_a_bd_rate_of_minus_20() -> None:
    anchor = bjontegaard.Curve.from_points("anchor", RATES, QUALITIES)
    cheaper = bjontegaard.Curve.from_points("cheaper", [0.8 * rate for rate in RATES], QUALITIES)
    comparison = bjontegaard.compare(anchor, cheaper)
    assert comparison.bd_rate == pytest.approx(-20, abs=1e-9)
    assert comparison.bd_quality is not None
    assert comparison.bd_quality > 0
    assert (comparison.quality_range, comparison.coverage) == ((27.0, 37.5), 1.0)
    assert "-20.00 %" in comparison.in_words()
    assert "27.00 to 37.50 dB" in comparison.in_words()


def test_one_decibel_more_at_every_rate_is_a_bd_quality_of_one() -> None:
    anchor = bjontegaard.Curve.from_points("anchor", RATES, QUALITIES)
    better = bjontegaard.Curve.from_points("better", RATES, [quality + 1 for quality in QUALITIES])
    comparison = bjontegaard.compare(anchor, better)
    assert comparison.bd_quality == pytest.approx(1, abs=1e-9)
    assert comparison.bd_rate < 0
    assert comparison.quality_range == (28.0, 37.5)


def test_curves_that_do_not_overlap_are_refused_with_both_ranges() -> None:
    anchor = bjontegaard.Curve.from_points("anchor", RATES, QUALITIES)
    far = bjontegaard.Curve.from_points("far", RATES, [quality + 20 for quality in QUALITIES])
    with pytest.raises(UsageError, match=r"far \(47\.00 to 57\.50 dB\).*anchor \(27\.00 to 37\.50 dB\)"):
        bjontegaard.compare(anchor, far)


def test_curves_without_a_common_rate_have_a_bd_rate_and_no_bd_quality() -> None:
    anchor = bjontegaard.Curve.from_points("anchor", RATES, QUALITIES)
    far = bjontegaard.Curve.from_points("dear", [20 * rate for rate in RATES], QUALITIES)
    comparison = bjontegaard.compare(anchor, far)
    assert comparison.bd_rate == pytest.approx(1900)
    assert comparison.bd_quality is None
    assert "None" not in comparison.in_words()


def test_points_that_cost_more_and_are_no_better_leave_the_curve() -> None:
    curve = bjontegaard.Curve.from_points("c", [0.4, 0.1, 0.3, 0.2], [31.0, 28.0, 29.5, 30.0])
    assert (curve.bpp, curve.quality, curve.dropped) == ((0.1, 0.2, 0.4), (28.0, 30.0, 31.0), 1)


@pytest.mark.parametrize(
    ("rates", "qualities"),
    [([0.1, 0.2], [30, 31]), ([0.1, 0.2, 0.3], [30, 29, 28]), ([0.1, 0.2, 0.3], [30, 31, math.inf]), ([1], [2, 3])],
)
def test_what_is_not_a_curve_is_refused(rates: list[float], qualities: list[float]) -> None:
    with pytest.raises(UsageError):
        bjontegaard.Curve.from_points("c", rates, qualities)


def test_a_file_that_is_not_a_curve_is_refused_by_name(tmp_path: Path) -> None:
    cases = {"text": "hello", "list": "[1]", "other": '{"results": {"bpp": [1, 2, 3]}}', "null": '{"results": null}'}
    for name, content in cases.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content)
        with pytest.raises((FileError, UsageError)) as caught:
            bjontegaard.read_curve(path)
        assert caught.value.file == str(path)
    with pytest.raises(FileError, match="no such file"):
        bjontegaard.read_curve(tmp_path / "missing.json")


@pytest.mark.skipif(not (ANCHORS / "bdrate.py").is_file(), reason="../shared/anchors is not there")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_deltas_equal_those_of_the_reference_script() -> None:
    spec = importlib.util.spec_from_file_location("reference_bdrate", ANCHORS / "bdrate.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    anchor_path = ANCHORS / "kodak" / "measured" / "jpeg.json"
    compared = 0
    for path in sorted((ANCHORS / "kodak").glob("*/*.json")):
        for metric in (bjontegaard.PSNR, bjontegaard.MS_SSIM_DB):
            try:
                _, rates, qualities = reference.load(path, metric)
                _, anchor_rates, anchor_qualities = reference.load(anchor_path, metric)
                expected = reference.bd(anchor_rates, anchor_qualities, rates, qualities)
            except (KeyError, ValueError):
                with pytest.raises(UsageError):
                    bjontegaard.read_curve(path, metric)
                continue
            got = bjontegaard.compare(bjontegaard.read_curve(anchor_path, metric), bjontegaard.read_curve(path, metric))
            assert got.bd_rate == pytest.approx(expected["bd_rate"], abs=1e-6), path.name
            assert got.bd_quality == pytest.approx(expected["bd_quality"], abs=1e-6), path.name
            compared += 1
    assert compared > 60


# --------------------------------------------------------------------------------------------------------- the command


def test_qualities_are_numbers_with_commas_between() -> None:
    assert parse_qualities("100,0,14.5,0") == (0.0, 14.5, 100.0)
    for bad in ("", "a", "1,,2", "101", "-1", "0.25", "nan", "inf"):
        with pytest.raises(UsageError):
            parse_qualities(bad)


def test_default_qualities_are_eight_half_steps_over_the_whole_range() -> None:
    assert len(DEFAULT_QUALITIES) == 8
    assert (DEFAULT_QUALITIES[0], DEFAULT_QUALITIES[-1]) == (0, 100)
    assert parse_qualities(",".join(map(str, DEFAULT_QUALITIES))) == DEFAULT_QUALITIES


@pytest.mark.usefixtures("one_thread")
def test_the_shipped_model_is_measured_verified_and_written_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    outputs = []
    for name in ("first.json", "second.json"):
        result = run("--dataset", folder, "-q", "0,50,100", "--verify", "--json", tmp_path / name, "--device", "cpu")
        assert result.exception is None, result.exception
        outputs.append(json.loads((tmp_path / name).read_text()))
    for output in outputs:
        for key in TIMES:
            assert min(output["results"].pop(key)) > 0
            for row in output["per_image"]:
                del row[key]
    assert outputs[0] == outputs[1]
    results = outputs[0]["results"]
    assert sorted(results) == ["bpp", "ms-ssim-rgb", "ms-ssim-rgb-db", "psnr-rgb", "ssimulacra2"]
    assert results["bpp"] == sorted(set(results["bpp"]))
    assert outputs[0]["qualities"] == [0.0, 50.0, 100.0]
    assert len(outputs[0]["per_image"]) == 6
    assert len(bytes.fromhex(outputs[0]["checkpoint"]["identity"])) == 8
    assert outputs[0]["machine"]["torch"]


def test_a_jpeg_curve_is_printed_and_compared_with_an_anchor(folder: Path, tmp_path: Path) -> None:
    curve = tmp_path / "jpeg.json"
    arguments = ("--dataset", folder, "--codec", "jpeg", "-q", "10,50,90")
    assert run(*arguments, "--json", curve).exception is None
    result = run(*arguments, "--anchor", curve, "--per-image", "--json", tmp_path / "again.json")
    assert result.exception is None, result.exception
    assert "BD-rate against JPEG: +0.00 %" in result.output
    assert "p1.png" in result.output and "falls from" not in result.output
    comparison = json.loads((tmp_path / "again.json").read_text())["comparisons"][0]
    assert comparison["bd_rate"] == pytest.approx(0, abs=1e-9)


def test_json_on_stdout_is_nothing_but_json(folder: Path) -> None:
    result = run("--dataset", folder, "--codec", "jpeg", "-q", "50", "--limit", "1", "--json", "-")
    assert json.loads(result.stdout)["images"] == 1


def test_an_anchor_out_of_reach_is_refused_after_the_results_are_saved(folder: Path, tmp_path: Path) -> None:
    far = tmp_path / "far.json"
    far.write_text(json.dumps({"name": "far", "results": {"bpp": RATES, "psnr-rgb": [q + 60 for q in QUALITIES]}}))
    arguments = ("--dataset", folder, "--codec", "jpeg", "-q", "10,50,90", "--json", tmp_path / "out.json")
    result = run(*arguments, "--anchor", far)
    assert isinstance(result.exception, UsageError)
    assert "no quality in common" in str(result.exception)
    assert len(json.loads((tmp_path / "out.json").read_text())["results"]["bpp"]) == 3


def test_mistakes_are_reported_before_anything_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*arguments: object, **options: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr(campaign, "perform", measured)
    taken = tmp_path / "taken.json"
    taken.write_text("mine")
    cases: list[tuple[type[Exception], tuple[object, ...]]] = [
        (FileError, ("--dataset", tmp_path / "nowhere", "--codec", "jpeg")),
        (FileError, ("--dataset", folder, "--codec", "jpeg", "--json", taken)),
        (FileError, ("--dataset", folder, "--codec", "jpeg", "--anchor", tmp_path / "nowhere.json")),
        (UsageError, ("--dataset", folder, "--codec", "jpeg", "--verify")),
        (UsageError, ("--dataset", folder, "--codec", "jpeg", "--model", "phase1-lite")),
        (UsageError, ("--dataset", folder, "--codec", "jpeg", "-q", "10.5")),
        (UsageError, ("--dataset", folder, "--codec", "jpeg", "-q", "10,50", "--anchor", taken)),
        (UsageError, ("--dataset", folder, "-q", "200")),
    ]
    for kind, arguments in cases:
        result = run(*arguments)
        assert isinstance(result.exception, kind), (arguments, result.exception, result.output)
    assert taken.read_text() == "mine"


def test_a_picture_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "p9.png").write_bytes((folder / "p0.png").read_bytes()[:200])
    result = run("--dataset", folder, "--codec", "jpeg", "-q", "50")
    assert isinstance(result.exception, FileError)
    assert str(folder / "p9.png") in str(result.exception)
