"""Priors whose channels have similar sizes before and behind the gain, so that one unit is fine enough for both.

A channel of a prior has one unit throughout (`engines.exact.modules.IntegerPrior`), while a trained gain may make it thirty times
smaller: behind the gain, five bits are then missing. Here the gains of each channel are multiplied by a power of two, and the weights
behind them are divided by it. In floating point the model computes what it did; the rounding of weights comes afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hpcm_codec.engines.exact.watching import LargestMagnitudes, code_pictures
from hpcm_codec.model.blocks import RateSequential, ResidualBlock
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.priors import Prior, StepAdaptor

LARGEST_GAIN = 4.0  # the integers hold gains below 8
LARGEST_POWER = 8  # more would be for channels that are nearly zero behind the gain


@torch.no_grad()
def balance(model: HPCM, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    """Rescale the priors in place; returns the exponents of two of each prior's channels, by its name.

    model: in evaluation mode; pictures: as `engines.exact.export.calibrate` takes them. Channels that are larger behind the gain stay
    as they are, unless a gain is above LARGEST_GAIN. So do priors of RWKV blocks, whose channels share one unit.
    """
    if model.config.prior_rwkv_rate is not None:
        return {}
    found = {}
    sizes = _sizes(model, pictures)
    for name, prior, adaptors in _priors(model):
        before, after = sizes[f"{name}.before"], sizes[f"{name}.after"]
        gains = torch.stack([adaptor.gain.level_values.abs().amax(0) for adaptor in adaptors]).amax(0)
        most = (LARGEST_GAIN / gains.clamp_min(1e-6)).log2().floor()
        power = (before.clamp_min(1e-6) / after.clamp_min(1e-6)).log2().floor().clamp(0, LARGEST_POWER)
        power = torch.minimum(power, most)
        _multiply(prior, adaptors, power.exp2())
        found[name] = power
    return found


def _priors(model: HPCM) -> Iterator[tuple[str, Prior, list[StepAdaptor]]]:
    """Both priors with their names and their steps' adaptors."""
    first, second, third = (list(cast(nn.ModuleList, steps)) for steps in model.context.adaptors)
    yield "prior_s12", model.context.prior_s12, cast(list[StepAdaptor], first + second)
    yield "prior_s3", model.context.prior_s3, cast(list[StepAdaptor], third)


def _sizes(model: HPCM, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    """The largest magnitude of each channel before and behind the gain, by prior and part."""
    sizes = LargestMagnitudes()
    hooks = []
    for prior_name, prior, _ in _priors(model):
        for part in ("before", "after"):
            name, blocks = f"{prior_name}.{part}", cast(RateSequential, getattr(prior, part))
            hooks.append(blocks.register_forward_pre_hook(lambda _, inputs, name=name: sizes.see(name, inputs[0])))
            hooks += [block.register_forward_hook(lambda _, __, y, name=name: sizes.see(name, y)) for block in blocks]
    code_pictures(model, pictures, hooks)
    return sizes.by_name


def _multiply(prior: Prior, adaptors: Sequence[StepAdaptor], factor: Tensor) -> None:
    """Make the channels between the gain and the head `factor` times as large; factor: C powers of two."""
    for adaptor in adaptors:
        adaptor.gain.level_values.mul_(factor)
    for block in prior.after:
        assert (
            isinstance(block, ResidualBlock) and isinstance(block.spatial, nn.Conv2d) and block.project.bias is not None
        )
        block.spatial.weight.div_(factor[:, None, None, None])
        block.project.weight.mul_(factor[:, None, None, None])
        block.project.bias.mul_(factor)
    prior.head.weight.div_(factor[:, None, None])
