"""SSIMULACRA 2 and FLIP: values as published, what is asked for, and where the figures appear."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from conftest import small_photograph
from hpcm_codec.cli.main import main
from hpcm_codec.errors import UnsupportedError, UsageError
from hpcm_codec.evaluation import perceptual
from hpcm_codec.evaluation.perceptual import measure_perceptual, parse_perceptual

BOTH = ("ssimulacra2", "flip")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    for number in range(2):
        Image.fromarray(small_photograph(180, 170, seed=number)).save(made / f"p{number}.png")
    return made


@pytest.mark.parametrize("quality, published", [(40, 50), (70, 70)])
def test_jpeg_on_kodak_scores_as_the_authors_of_ssimulacra2_say(quality: int, published: float, kodak: Path) -> None:
    # their scale: 50 is what JPEG at quality 40 has on average, 70 what it has at 70 (libjxl, tools/ssimulacra2)
    scores = []
    for path in sorted(kodak.glob("*.png"))[::4]:
        picture = Image.open(path).convert("RGB")
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, subsampling=2)
        decoded = np.asarray(Image.open(file).convert("RGB"))
        scores.append(measure_perceptual(("ssimulacra2",), np.asarray(picture), decoded)["ssimulacra2"])
    assert abs(float(np.mean(scores)) - published) < 8


def test_identical_pictures_and_worse_ones() -> None:
    picture = small_photograph(96, 80)
    noise = np.random.default_rng(0).normal(size=picture.shape)
    mild, strong = (np.clip(picture + size * noise, 0, 255).astype(np.uint8) for size in (5, 40))
    same, little, much = (measure_perceptual(BOTH, picture, other) for other in (picture, mild, strong))
    assert same["ssimulacra2"] == pytest.approx(100) and same["flip"] == 0
    assert 100 > little["ssimulacra2"] > much["ssimulacra2"] and 0 < little["flip"] < much["flip"] < 1


def test_grey_pictures_and_tiny_ones() -> None:
    grey = small_photograph(64, 64)[:, :, :1]
    assert measure_perceptual(BOTH, grey, grey)["ssimulacra2"] == pytest.approx(100)
    assert measure_perceptual(BOTH, grey[:7], grey[:7]) == {}


def test_what_is_measured_is_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_perceptual(None) == ("ssimulacra2",)
    assert parse_perceptual("none") == ()
    assert parse_perceptual("flip, ssimulacra2,flip") == ("flip", "ssimulacra2")
    with pytest.raises(UsageError, match="takes none or ssimulacra2, flip"):
        parse_perceptual("butteraugli")
    monkeypatch.setattr(perceptual, "is_installed", lambda name: False)
    assert parse_perceptual(None) == ()
    with pytest.raises(UnsupportedError, match="SSIMULACRA 2 is not installed"):
        parse_perceptual("ssimulacra2")


def test_eval_writes_prints_draws_and_keeps_them(folder: Path, tmp_path: Path) -> None:
    out, page, log = tmp_path / "out.json", tmp_path / "page.html", tmp_path / "log"
    arguments = (
        "eval",
        "--dataset",
        folder,
        "--codec",
        "jpeg,webp",
        "-q",
        "20,50,90",
        "--perceptual",
        "ssimulacra2,flip",
    )
    more = ("--metric", "ssimulacra2", "--plot", tmp_path / "curve.svg", "--report", page, "--per-image", "--work", log)
    result = run(*arguments, *more, "--json", out)
    assert result.exception is None, result.exception
    assert "SSIMULACRA 2" in result.output and "FLIP" in result.output and "points at equal rate" in result.output
    data = json.loads(out.read_text())
    assert data["results"]["ssimulacra2"] == sorted(data["results"]["ssimulacra2"])
    assert data["results"]["flip"] == sorted(data["results"]["flip"], reverse=True)
    assert {"ssimulacra2", "flip"} <= data["per_image"][0].keys()
    assert (tmp_path / "curve.svg").stat().st_size > 1000
    assert '"SSIMULACRA 2"' in page.read_text() and "FLIP 0." in page.read_text()
    # measured without them, the same pictures are measured anew; with them, taken from the log
    kept = log.read_text()
    again = run(*arguments, "--work", log)
    assert again.exception is None and log.read_text() == kept
    none = run("eval", "--dataset", folder, "--codec", "jpeg", "-q", "20", "--perceptual", "none", "--work", log)
    assert none.exception is None and "SSIMULACRA" not in none.output and len(log.read_text()) > len(kept)


def test_a_curve_by_a_measure_that_is_not_measured_is_refused(folder: Path) -> None:
    result = run("eval", "--dataset", folder, "--codec", "jpeg", "--perceptual", "none", "--metric", "ssimulacra2")
    assert result.exit_code == 2 and "needs that measure" in result.output


def test_compare_names_them_for_each_codec(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(small_photograph(96, 80)).save(picture)
    arguments = ("compare", picture, "--codec", "jpeg,webp", "-q", "50", "--perceptual", "ssimulacra2,flip")
    result = run(*arguments, "-o", tmp_path / "a.html")
    assert result.exception is None, result.exception
    assert result.output.count("SSIMULACRA 2 ") == 2 and result.output.count("FLIP 0.") == 2
