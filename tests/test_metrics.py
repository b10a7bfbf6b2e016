"""PSNR and MS-SSIM: the definitions, written out slowly and independently, and properties that must hold."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcm_codec.evaluation import metrics
from hpcm_codec.images import fidelity

Samples = NDArray[np.uint8]
ANCHORS = Path(__file__).resolve().parents[2] / "shared" / "anchors" / "kodak" / "measured"
KODAK = Path(__file__).resolve().parents[2] / "shared" / "data" / "kodak"


pytestmark = pytest.mark.usefixtures("one_thread")


def smooth_picture(height: int, width: int) -> Samples:
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [128 + 90 * np.sin(rows / (7 + 4 * c)) * np.cos(columns / (11 - 2 * c)) for c in range(3)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def noisy(picture: Samples, sigma: float, seed: int = 0) -> Samples:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


def slow_ms_ssim(first: Samples, second: Samples) -> float:
    """The formulas of Wang 2003, one window at a time, with a two-dimensional window."""
    axis = np.arange(11) - 5
    window = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def weighted(plane: NDArray[np.float64]) -> NDArray[np.float64]:
        views = np.lib.stride_tricks.sliding_window_view(plane, (11, 11))
        return np.asarray(np.einsum("ijkl,kl->ij", views, window))

    def halved(plane: NDArray[np.float64]) -> NDArray[np.float64]:
        height, width = plane.shape
        rows = [plane[i : i + 2].mean(axis=0) for i in range(0, height, 2)]
        return np.array([[row[j : j + 2].mean() for j in range(0, width, 2)] for row in rows])

    values = []
    for component in range(first.shape[2]):
        x, y = (p[..., component].astype(np.float64) for p in (first, second))
        value = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            mean_x, mean_y = weighted(x), weighted(y)
            variance_x, variance_y = weighted(x * x) - mean_x**2, weighted(y * y) - mean_y**2
            covariance = weighted(x * y) - mean_x * mean_y
            term = (2 * covariance + 58.5225) / (variance_x + variance_y + 58.5225)
            if scale == 4:
                term = term * (2 * mean_x * mean_y + 6.5025) / (mean_x**2 + mean_y**2 + 6.5025)
            value *= float(term.mean()) ** weight
            x, y = halved(x), halved(y)
        values.append(value)
    return sum(values) / len(values)


def test_psnr_is_taken_from_one_error_over_all_components() -> None:
    original = np.zeros((4, 4, 3), np.uint8)
    decoded = original.copy()
    decoded[..., 0] = 30  # one component wrong by 30: mean squared error 900 / 3
    assert fidelity.psnr(original, decoded) == pytest.approx(10 * math.log10(255**2 / 300), abs=1e-12)


def test_psnr_does_not_wrap_around_when_the_decoded_sample_is_larger() -> None:
    dark, bright = np.full((2, 2, 3), 10, np.uint8), np.full((2, 2, 3), 250, np.uint8)
    assert fidelity.psnr(dark, bright) == fidelity.psnr(bright, dark) == pytest.approx(20 * math.log10(255 / 240))


def test_identical_pictures_have_infinite_psnr_and_similarity_one() -> None:
    picture = noisy(smooth_picture(170, 180), 20)
    assert fidelity.psnr(picture, picture) == math.inf
    assert metrics.ms_ssim(picture, picture) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shape", [(176, 192), (161, 175)])
def test_ms_ssim_equals_its_definition_written_out(shape: tuple[int, int]) -> None:
    original = smooth_picture(*shape)
    decoded = noisy(original, 12)
    assert metrics.ms_ssim(original, decoded) == pytest.approx(slow_ms_ssim(original, decoded), abs=1e-10)


def test_ms_ssim_falls_as_noise_grows_and_does_not_care_which_picture_comes_first() -> None:
    original = smooth_picture(170, 170)
    values = [metrics.ms_ssim(original, noisy(original, sigma)) for sigma in (2, 8, 25, 60)]
    assert None not in values
    assert values == sorted(values, key=lambda value: -(value or 0))
    assert len(set(values)) == 4
    decoded = noisy(original, 8)
    assert metrics.ms_ssim(original, decoded) == pytest.approx(metrics.ms_ssim(decoded, original), abs=1e-12)


def test_ms_ssim_of_a_negative_is_zero_and_no_nan() -> None:
    original = noisy(smooth_picture(176, 176), 5)
    assert metrics.ms_ssim(original, np.uint8(255) - original) == 0


def test_ms_ssim_is_taken_from_161_pixels_a_side_and_not_below() -> None:
    assert metrics.SMALLEST_SIDE == 161
    enough, too_small = smooth_picture(161, 300), smooth_picture(160, 300)
    assert metrics.ms_ssim(enough, noisy(enough, 5)) is not None
    assert metrics.ms_ssim(too_small, noisy(too_small, 5)) is None


def test_a_grey_picture_has_the_figures_of_the_same_picture_in_rgb() -> None:
    grey = noisy(smooth_picture(170, 170), 3)[..., :1]
    decoded = noisy(grey, 9)
    in_rgb = [np.repeat(picture, 3, axis=2) for picture in (grey, decoded)]
    assert fidelity.psnr(grey, decoded) == pytest.approx(fidelity.psnr(*in_rgb), abs=1e-12)
    assert metrics.ms_ssim(grey, decoded) == pytest.approx(metrics.ms_ssim(*in_rgb), abs=1e-12)


def test_decibels_of_ms_ssim() -> None:
    assert metrics.ms_ssim_db(0.99) == pytest.approx(20)
    assert metrics.ms_ssim_db(1.0) == math.inf


@pytest.mark.parametrize("metric", [fidelity.psnr, metrics.ms_ssim])
def test_pictures_of_different_shape_or_type_are_not_compared(metric: object) -> None:
    assert callable(metric)
    picture = smooth_picture(170, 170)
    with pytest.raises(ValueError, match="one shape"):
        metric(picture, picture[:-1])
    with pytest.raises(ValueError, match="uint8"):
        metric(picture, picture.astype(np.float32))


@pytest.mark.skipif(
    not (ANCHORS.is_dir() and KODAK.is_dir()), reason="../shared with Kodak and its curves is not there"
)
def test_our_jpeg_figures_are_those_measured_elsewhere() -> None:
    """One quality, whose curve point was measured by other programs, over all 24 pictures."""
    import json

    from hpcm_codec.evaluation.codecs import PillowCodec
    from hpcm_codec.evaluation.datasets import find_dataset
    from hpcm_codec.evaluation.runner import means_of, measure
    from hpcm_codec.images import read_picture

    curve = json.loads((ANCHORS / "jpeg.json").read_text())
    place = curve["quality"].index(10)
    codec, pictures = PillowCodec("jpeg"), find_dataset("kodak")
    mean = means_of([measure(codec, read_picture(pictures.path(name)), 10.0, name) for name in pictures.names])[0]
    # Another libjpeg-turbo may round differently; another definition of any of these would be far off.
    assert mean.bpp == pytest.approx(curve["results"]["bpp"][place], rel=2e-3)
    assert mean.psnr == pytest.approx(curve["results"]["psnr-rgb"][place], abs=0.02)
    assert mean.ms_ssim == pytest.approx(curve["results"]["ms-ssim-rgb"][place], abs=1e-3)
