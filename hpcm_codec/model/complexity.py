"""How large a model is and how much it computes, by part: nothing is run, shapes alone are counted (torch's meta device)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.schedule import Lattice, Scale
from hpcm_codec.tiles.grid import PIXELS_PER_LATENT

PARTS = ("g_a", "g_s", "hyper", "context")
EDGE = 256  # pixels; its lattices are whole windows at every scale, so no padding is counted


@dataclass(frozen=True)
class PartComplexity:
    """parameters: how many numbers are learned; kmac_per_pixel: thousands of multiply-adds for each pixel of the picture."""

    parameters: int
    kmac_per_pixel: float


class MeanPort:
    """A symbol port whose symbols are all zero: every latent becomes its mean."""

    def begin(self, scale: Scale, number: int) -> None:
        pass

    def exchange(self, step: Lattice, sigma: Tensor, mean: Tensor) -> Tensor:
        return torch.zeros_like(mean)


def complexity_by_part(
    config: ModelConfig, edge: int = EDGE, *, as_published: bool = False
) -> dict[str, PartComplexity]:
    """Parameters and multiply-adds of g_a, g_s, hyper (both ways, with the hyper-latents' distribution) and context.

    as_published: also count the context cell after the very last step, as the figures of HPCM do. Nothing uses its output, so we do
    not compute it.

    edge: of the square picture, a multiple of 64; attention pads lattices that are no multiple of its windows (see EDGE). Counted are
    convolutions, matrix products and attention; not counted are element-wise operations, Bi-WKV4 among them, whose cost per pixel is
    below 1% in every preset.
    """
    with torch.device("meta"):
        model = HPCM(config).eval().requires_grad_(False)
        rate = torch.ones(1, config.rate_levels)
        image = torch.empty(1, 3, edge, edge)
        latents = torch.empty(1, config.latent_channels, edge // PIXELS_PER_LATENT, edge // PIXELS_PER_LATENT)
        hyper_edge = edge // PIXELS_PER_LATENT // 4
        hyper = torch.empty(1, config.hyper_channels, hyper_edge, hyper_edge)
        params = torch.empty(1, 2 * config.latent_channels, *latents.shape[-2:])

    def code_latents() -> None:
        model.context.code_latents(params, MeanPort(), rate, model.latent_log_gain(rate))
        if as_published:
            model.context.cells[-1](params, params)

    work: dict[str, Callable[[], object]] = {
        "g_a": lambda: model.analyse(image),
        "g_s": lambda: model.synthesise(latents, rate),
        "hyper": lambda: (model.hyper_latents(latents, rate), model.hyper_synthesis(hyper, rate)),
        "context": code_latents,
    }
    sizes = parameters_by_part(model)
    return {part: PartComplexity(sizes[part], operations_of(work[part]) / 2 / edge**2 / 1000) for part in PARTS}


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Number of learned values in each part; the rate control's gains count as hyper."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        module = name.split(".")[0]
        sizes[module if module in sizes else "hyper"] += parameter.numel()
    return sizes


def total(parts: dict[str, PartComplexity]) -> PartComplexity:
    """All parts together."""
    return PartComplexity(
        sum(part.parameters for part in parts.values()), sum(part.kmac_per_pixel for part in parts.values())
    )


@contextmanager
def operations_counted() -> Iterator[FlopCounterMode]:
    """While it lasts, convolutions, matrix products and attention are counted, two operations for each multiply-add, in
    `get_total_flops()`."""
    # attention as plain matrix products: the counter does not support every fused kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def operations_of(work: Callable[[], object]) -> int:
    """Operations of some work (see `operations_counted`)."""
    with operations_counted() as counter:
        work()
    return int(counter.get_total_flops())
