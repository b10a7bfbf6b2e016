"""The channels between the patch projections and the latents brought to one size, without changing what a patch model computes.

The projection starts as a block transform, whose lowest frequency is a hundred times as large as its highest ones. One step of Adam moves
every weight by the same amount, so the weights of large channels change the function most. Divided by their standard deviation over
pictures, with weights that undo it, all channels are alike to the optimiser. The transforms then need a lower rate
(`transform_rate_factor`): a step of one size now changes the whole of a block's output. docs/training-log.md has the measured gain.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.blocks import RateSequential, ResidualBlock
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.rate import spread_positions

SMALLEST = 1e-3  # the least divisor, for channels that hardly vary


@torch.no_grad()
def condition(model: HPCM, x: Tensor, power: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rescale the channels at 1/8 resolution of analysis and synthesis in place; returns what each was divided by, C each.

    model: a patch model in evaluation mode; x: pictures B×3×H×W in [0, 1], H and W multiples of 64.
    power: of the standard deviation that channels are divided by; 1 makes all of one size, 0 changes nothing.
    Raises UnsupportedError for another transform.
    """
    if model.config.transform != "patch":
        raise UnsupportedError("only patch models can be conditioned")
    position = spread_positions(model.config.rate_levels)[len(spread_positions(model.config.rate_levels)) // 2]
    rate = model.rate_at(position, x.shape[0])
    latents = model.analyse(x)
    found = []
    for transform, start in ((model.g_a, x), (model.g_s, latents)):
        begin, end = _stream(transform)
        sizes = _deviations(transform, start, rate if transform is model.g_s else None, begin, end).pow(power)
        _rescale(transform, begin, end, sizes)
        found.append(sizes)
    return found[0], found[1]


def _stream(transform: RateSequential) -> tuple[int, int]:
    """The layers that a run of residual blocks at 1/8 resolution lies between: of the projections, the longest run."""
    ends = [n for n, layer in enumerate(transform) if not isinstance(layer, ResidualBlock)]
    return max(itertools.pairwise(ends), key=lambda pair: pair[1] - pair[0])


def _deviations(transform: RateSequential, x: Tensor, rate: Tensor | None, begin: int, end: int) -> Tensor:
    """Standard deviation of each channel over all blocks' inputs."""
    squares, count = torch.zeros(()), 0
    for number, layer in enumerate(list(transform)[:end]):
        x = layer(x, rate) if isinstance(layer, ResidualBlock) else layer(x)
        if number >= begin:
            squares = squares + x.float().var(dim=(0, 2, 3))
            count += 1
    return (squares / count).sqrt().clamp_min(SMALLEST)


def _rescale(transform: RateSequential, begin: int, end: int, sizes: Tensor) -> None:
    """Divide the channels between two layers by `sizes`."""
    first, last = transform[begin], transform[end]
    assert isinstance(first, (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(last, (nn.Conv2d, nn.ConvTranspose2d))
    assert first.bias is not None
    outputs = 0 if isinstance(first, nn.Conv2d) else 1  # axes of the weights
    inputs = 1 if isinstance(last, nn.Conv2d) else 0
    first.weight.div_(_along(sizes, outputs))
    first.bias.div_(sizes)
    last.weight.mul_(_along(sizes, inputs))
    for block in list(transform)[begin + 1 : end]:
        assert isinstance(block, ResidualBlock) and isinstance(block.spatial, nn.Conv2d)
        assert block.project.bias is not None
        block.spatial.weight.mul_(_along(sizes, 0))
        block.project.weight.div_(_along(sizes, 0))
        block.project.bias.div_(sizes)


def _along(sizes: Tensor, axis: int) -> Tensor:
    shape = [1] * 4
    shape[axis] = -1
    return sizes.reshape(shape)
