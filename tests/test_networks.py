"""`hpcm_codec.networks`: the plan's example as a user types it, with few channels, and its documented behaviour.

The example with all its channels is in the module's docstring, which is tested as all docstrings are.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hpcm_codec
from conftest import small_photograph
from hpcm_codec import networks
from hpcm_codec.errors import FileError, UnsupportedError, UsageError
from hpcm_codec.model.rwkv import ChannelMix
from hpcm_codec.networks import build, parameter_groups, rate_distortion_loss
from hpcm_codec.training.losses import REFERENCE_LAMBDA, rate_distortion


@pytest.mark.parametrize(
    ("name", "lr"), [("phase1", 2e-3), ("phase4", 2e-3), ("phase1-lite", 1e-4), ("phase4-lite", 1e-4)]
)
def test_a_few_steps_of_a_users_own_loop_lower_the_loss(name: str, lr: float) -> None:
    torch.manual_seed(0)
    model = build(name, M=16, N=8, hidden_rate=1.5, use_checkpoint=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=lr, decay_lr=lr / 10))
    images = torch.from_numpy(small_photograph(64, 64)).permute(2, 0, 1)[None] / 255
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(images)
        assert output["x_hat"].shape == images.shape and output["likelihoods"]["y"].dtype == torch.float32
        loss = rate_distortion_loss(output["x_hat"], images, output["likelihoods"], lmbda=0.013)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_sizes_are_those_that_were_asked_for() -> None:
    with torch.device("meta"):
        model = build("phase4", M=32, N=24, hidden_rate=1.5)
    assert model.config.latent_channels == 32 and model.config.hyper_channels == 24
    mixes = [module for module in model.modules() if isinstance(module, ChannelMix)]
    assert len(mixes) == 3 + 2 + 8
    assert {mix.key.out_features / mix.key.in_features for mix in mixes} == {1.5}
    with torch.device("meta"):
        assert build("phase2").config.cells[0].hidden_rate == 2.0


def test_decay_and_boost_have_a_group_of_their_own() -> None:
    model = build("phase2", M=16, N=8)
    others, slow = parameter_groups(model, lr=1e-3, decay_lr=1e-5)
    assert (others["lr"], slow["lr"], slow["weight_decay"]) == (1e-3, 1e-5, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(names[id(p)].rpartition(".")[2] for p in slow["params"]) == ["boost"] * 3 + ["decay"] * 3
    assert len(others["params"]) + 6 == len(names)
    assert len(parameter_groups(build("hpcm-base", M=16, N=8), 1e-3, 1e-5)) == 1


def test_the_loss_is_hpcms() -> None:
    torch.manual_seed(0)
    x, x_hat = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    y, z = torch.rand(2, 8, 4, 4).clamp_min(0.1), torch.rand(2, 4, 1, 1).clamp_min(0.1)
    loss = rate_distortion_loss(x_hat, x, {"y": y, "z": z}, lmbda=0.025)
    bits = -(y.log2().sum() + z.log2().sum())
    expected = 0.025 * 255**2 * (x_hat - x).square().mean() + bits / (2 * 64 * 64)
    torch.testing.assert_close(loss, expected)
    weight = torch.tensor([0.01, 0.04])
    each = torch.stack(
        [
            rate_distortion_loss(x_hat[i : i + 1], x[i : i + 1], {"y": y[i : i + 1], "z": z[i : i + 1]}, weight[i])
            for i in range(2)
        ]
    )
    torch.testing.assert_close(rate_distortion_loss(x_hat, x, {"y": y, "z": z}, weight), each.mean())
    ours = rate_distortion({"x_hat": x_hat, "likelihoods": {"y": y, "z": z}}, x, weight).loss
    torch.testing.assert_close(ours, (each / (weight / REFERENCE_LAMBDA).sqrt()).mean())


def test_a_trained_network_is_a_codec(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "mine.safetensors"
    identity = networks.save(build("phase3-lite", M=16, N=8), path)
    codec = hpcm_codec.load_codec(str(path))
    data = hpcm_codec.encode(small_photograph(), model=codec)
    assert hpcm_codec.decode(data, model=codec, output="numpy").shape == small_photograph().shape
    assert len(identity) == 16 and identity in data.hex()
    with pytest.raises(FileError):
        networks.save(build("phase3-lite", M=16, N=8), tmp_path / "nowhere" / "mine.safetensors")


def test_what_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="phase9.*phase2"):
        build("phase9")
    with pytest.raises(UsageError, match="multiple of 8"):
        build("phase1", M=20)
    with pytest.raises(UsageError, match="heads"):
        build("phase1", M=8)
    with pytest.raises(UsageError, match="larger than 0"):
        build("phase1", hidden_rate=0)
