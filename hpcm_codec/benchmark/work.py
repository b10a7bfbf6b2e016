"""How much every stage has to compute and to move, by the shapes alone (torch's meta device).

Operations are the multiply-adds of convolutions, matrix products and attention, two operations each: floating-point ones, and in the
exact profile, which has the same layers in the hyper synthesis and the context steps, integer ones. Element-wise operations, Bi-WKV
among them, are not counted: below 1% in every preset.

Bytes are the least that a stage can move: what it is given, the weights of its layers, and what it leaves to the next, once each. What
passes between its layers is not counted, as if caches held it all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from hpcm_codec.benchmark.meter import Meter
from hpcm_codec.benchmark.stages import SCALES, STEPS, ObservedMeanPort
from hpcm_codec.model.complexity import operations_counted
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.context import ContextModel
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.tiles.grid import HALO_LATENTS, LATENTS_PER_UNIT, PIXELS_PER_LATENT, TileGrid

FLOAT, SHORT, INT = (
    4,
    2,
    4,
)  # bytes of a number: float32; int16 activations and weights; int32 symbols and table indexes

Sides = tuple[int, int]


@dataclass(frozen=True)
class Work:
    """operations: two for each multiply-add; bytes: the least that has to be moved."""

    operations: int
    bytes: int


def work_by_stage(
    config: ModelConfig, width: int, height: int, profile: str, coded_bytes: int, picture_bytes: int
) -> dict[str, Work]:
    """Operations and bytes of each stage of encoding and decoding such a picture, with the codec's tiles and halos.

    profile: "exact" or "float"; coded_bytes: of the .hpcm file; picture_bytes: of the picture file. "other" is left out.
    """
    total: Counter[str] = Counter()
    least: Counter[str] = Counter()
    for tile in TileGrid(width, height):
        window = tile.with_halo(HALO_LATENTS).latents
        own, seen = (tile.latents.height, tile.latents.width), (window.height, window.width)
        total.update(_operations(config, own, seen))
        least.update(_bytes(config, own, seen, profile))
    least["rANS coding"] += coded_bytes
    least["container"] = 2 * coded_bytes
    least["read"] = least["write"] = picture_bytes + 3 * width * height
    return {stage: Work(total[stage], least[stage]) for stage in least}


@cache
def _meta_model(config: ModelConfig) -> HPCM:
    with torch.device("meta"):
        return HPCM(config).eval().requires_grad_(False)


@cache
def _operations(config: ModelConfig, own: Sides, seen: Sides) -> dict[str, int]:
    """Operations of each stage for a tile of so many latents (height, width) that the transforms see with its halo."""
    model = _meta_model(config)
    with torch.device("meta"):
        rate = torch.ones(1, config.rate_levels)
        image = torch.empty(1, 3, *(side * PIXELS_PER_LATENT for side in seen))
        latents, around = (torch.empty(1, config.latent_channels, *sides) for sides in (own, seen))
        hyper = torch.empty(1, config.hyper_channels, *(side // LATENTS_PER_UNIT for side in own))
    with operations_counted() as counter, torch.inference_mode():
        meter = Meter(counter.get_total_flops)
        meter.wrap(model.analyse, "analysis")(image)
        meter.wrap(model.hyper_latents, "hyper analysis")(latents, rate)
        meter.wrap(model.code_latents, "hyper synthesis")(hyper, rate, ObservedMeanPort(meter))
        meter.wrap(model.synthesise, "synthesis")(around, rate)
    return {stage: int(count) for stage, count in meter.charged.items()}


@cache
def _bytes(config: ModelConfig, own: Sides, seen: Sides, profile: str) -> dict[str, int]:
    """The least bytes of each stage for such a tile; of "rANS coding" without the coded bytes."""
    model = _meta_model(config)
    area, around = own[0] * own[1], seen[0] * seen[1]
    latents, pixels = config.latent_channels, 3 * PIXELS_PER_LATENT**2
    hyper = config.hyper_channels * area // LATENTS_PER_UNIT**2
    number = SHORT if profile == "exact" else FLOAT
    symbols = latents * area + hyper
    least = {
        "analysis": FLOAT * ((pixels + latents) * around + _parameters([model.g_a])),
        "hyper analysis": FLOAT * (latents * area + hyper + _parameters([model.h_a])),
        "hyper synthesis": number * (hyper + 2 * latents * area + _parameters([model.h_s])),
        "synthesis": FLOAT * ((latents + pixels) * around + _parameters([model.g_s])),
        "symbols": (FLOAT + 2 * INT) * symbols,  # latents and table indexes to symbols
        "rANS coding": 2 * INT * symbols,
    }
    for scale, name in enumerate(SCALES):
        plane = area // 4 ** (len(SCALES) - 1 - scale)  # each scale has a quarter of the next one's positions
        steps = [step for step in STEPS if step.startswith(name)]
        for index, step in enumerate(steps):
            # context and latents in and out; latents are float32 or int32
            moved = 2 * plane * latents * (2 * number + FLOAT)
            least[step] = moved + number * _parameters(_layers(model.context, scale, index, len(steps)))
    return least


def _layers(context: ContextModel, scale: int, index: int, steps: int) -> list[nn.Module]:
    """The layers that a step uses: the first of s1 has none, the last of s3 no cell."""
    adaptor = index - (1 if scale == 0 else 0)
    if adaptor < 0:
        return []
    prior = context.prior_s3 if scale == len(SCALES) - 1 else context.prior_s12
    layers: list[nn.Module] = [context.adaptors[scale][adaptor], prior]  # type: ignore[index]
    if not (scale == len(SCALES) - 1 and index == steps - 1):
        layers.append(context.cells[scale])
    if scale > 0 and index == 0:
        layers.append(context.context_nets[scale - 1])
    return layers


def _parameters(modules: Iterable[nn.Module]) -> int:
    tensors: list[Tensor] = [parameter for module in modules for parameter in module.parameters()]
    return sum(tensor.numel() for tensor in tensors)
