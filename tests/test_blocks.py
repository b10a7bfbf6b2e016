"""The residual block in inference, where it overwrites its own intermediate planes."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from hpcm_codec.model.blocks import ResidualBlock


@pytest.mark.parametrize("kind", ["partial", "depthwise"])
@pytest.mark.parametrize("levels", [0, 1, 3])
def test_inference_gives_the_bits_that_training_gives_and_leaves_its_input_alone(
    kind: Literal["partial", "depthwise"], levels: int
) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(16, kind, levels)
    x = torch.randn(2, 16, 6, 10).contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    rate = torch.softmax(torch.randn(2, max(1, levels)), dim=1)
    trained = block(x, rate).detach()
    with torch.inference_mode():
        assert torch.equal(block(x, rate), trained)
    assert torch.equal(x, kept)
