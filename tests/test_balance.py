"""Units of the exact profile: priors balanced about their gains, and channels that have units of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import exported_exactly, few_extremes, photographs_to_calibrate, small_photograph
from hpcm_codec.codec import Codec
from hpcm_codec.engines.exact.balance import LARGEST_GAIN, LARGEST_POWER, balance
from hpcm_codec.engines.exact.export import calibrate
from hpcm_codec.images import Picture
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.priors import StepAdaptor
from hpcm_codec.weights.checkpoints import load_checkpoint
from test_exact_styles import published_style
from test_hpcm_phase1 import SMALL
from test_numpy_decoder import symbols_of
from test_phases import small

STYLES = {"residual blocks": SMALL, "published, one rate": published_style("hpcm-base"), "RWKV": small("phase4")}


def with_small_gains(style: str) -> HPCM:
    """A model whose priors work on large numbers before their gains and on small ones behind them, as trained ones do."""
    torch.manual_seed(3)
    model = HPCM(STYLES[style]).eval()
    for adaptor in (module for module in model.modules() if isinstance(module, StepAdaptor)):
        adaptor.adapt.weight.data *= 20
        adaptor.gain.level_values.data = 0.03 * (0.5 + torch.rand_like(adaptor.gain.level_values))
    return model


def test_channels_that_are_not_smaller_behind_the_gain_stay_as_they_are() -> None:
    """A channel that is zero, one that is as large behind a gain of 1, one whose gain is too large for the integers."""
    model = with_small_gains("residual blocks")
    for adaptor in (module for module in model.modules() if isinstance(module, StepAdaptor)):
        adaptor.adapt.weight.data[0] = 0.0
        assert adaptor.adapt.bias is not None
        adaptor.adapt.bias.data[0] = 0.0
        adaptor.gain.level_values.data[:, 1] = 1.0
        adaptor.gain.level_values.data[:, 2] = 6.0
        adaptor.gain.level_values.data[:, 3] = 0.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, power in balance(model, photographs_to_calibrate(2)).items():
        assert (
            power[0] in range(LARGEST_POWER + 1)
            and power[1] == 0
            and power[2] == -1
            and power[3] in range(LARGEST_POWER + 1)
        )
        head = f"context.{name}.head.weight"
        assert torch.equal(model.state_dict()[head][:, 1], before[head][:, 1])
        assert torch.equal(model.state_dict()[head][:, 2], 2 * before[head][:, 2])


@pytest.mark.parametrize("style", STYLES)
def test_balancing_leaves_the_function_alone(style: str) -> None:
    model = with_small_gains(style).double()
    pictures = [picture.double() for picture in photographs_to_calibrate(2)]
    before = [model(picture) for picture in pictures]
    found = balance(model, pictures)
    for picture, expected in zip(pictures, before, strict=True):
        result = model(picture)
        assert torch.allclose(result["x_hat"], expected["x_hat"], rtol=0, atol=1e-9)
        assert torch.allclose(result["likelihoods"]["y"], expected["likelihoods"]["y"], rtol=1e-9, atol=1e-12)
    if style == "RWKV":
        assert not found
    else:
        assert set(found) == {"prior_s12", "prior_s3"} and all((power >= 2).all() for power in found.values())
    # Nothing is left to do, and no gain is larger than the integers hold.
    assert all((power == 0).all() for power in balance(model, pictures).values())
    gains = [module.gain.level_values for module in model.modules() if isinstance(module, StepAdaptor)]
    assert max(gain.abs().max().item() for gain in gains) <= LARGEST_GAIN


def test_export_balances(tmp_path: Path) -> None:
    """Behind gains of a hundredth, a stream's unit is too coarse for scales and means; balanced, the integers follow floating point."""
    model = with_small_gains("residual blocks")
    for prior in (model.context.prior_s12, model.context.prior_s3):
        prior.head.weight.data = 0.5 * torch.randn_like(prior.head.weight) / prior.head.weight.shape[1] ** 0.5
    checkpoint = load_checkpoint(str(exported_exactly(model, tmp_path)))
    picture = Picture(small_photograph(128, 64, seed=8))
    both = [Codec(checkpoint, "cpu", profile) for profile in ("exact", "float")]
    found, expected = (torch.tensor(symbols_of(codec, codec.encode(picture, 60))[0]) for codec in both)
    assert (found != expected).float().mean() < 0.012  # 0.021 as it was
    old, new = (weights["context.prior_s3.head.weight"].float() for weights in (model.state_dict(), checkpoint.weights))
    assert new.abs().mean() < old.abs().mean() / 8


def test_channels_share_a_unit_only_where_they_must() -> None:
    """Streams of transforms meet in weighted sums alone; one unit for all of their channels cost 0.12 dB (docs/training-log.md)."""
    torch.manual_seed(0)
    model = HPCM(SMALL).eval()
    for transform in (model.g_a, model.g_s, model.h_a, model.h_s):
        first = transform[1 if transform is model.g_s else 0]
        assert isinstance(first, torch.nn.Conv2d | torch.nn.ConvTranspose2d) and first.bias is not None
        first.bias.data[0] = 300.0
    with few_extremes():
        found = calibrate(model, photographs_to_calibrate(2))
    for stream in ("g_a.inner", "g_s.inner", "h_a.inner", "h_s.inner"):
        assert found[stream][0] < found[stream][1:].float().mean(), f"one large channel makes all of {stream} coarse"
    for stream in ("context.cells.2.inner", "context.cells.0.inner.query", "context.cells.1.inner.key"):
        assert len(found[stream].unique()) == 1
