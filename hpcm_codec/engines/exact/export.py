"""Calibration: which units every activation of a trained model needs, found by running it on pictures.

A power of two is chosen for each channel (for all channels together where they meet in other ways than weighted sums), so that the largest
magnitude seen, times a margin, fits the integers' range. What is larger later saturates, in the encoder as in the decoder. The transforms'
units are found with pictures of extremes too, where a photograph's margin would not do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpcm_codec.engines.exact.network import FINE_BITS
from hpcm_codec.engines.exact.streams import TRANSFORMS, layer_streams
from hpcm_codec.engines.exact.watching import LargestMagnitudes, code_pictures
from hpcm_codec.model.blocks import PartialConv, RateSequential, ResidualBlock
from hpcm_codec.model.cells import CrossAttentionCell, RWKVContextCell
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.priors import Prior, StepAdaptor
from hpcm_codec.model.rwkv import RWKVBlock
from hpcm_codec.ops.integer import LIMIT, WIDE

MARGIN = 4.0  # of the range over what the calibration pictures need: saturation costs far more bits than a coarser unit
# The same of the transforms, over photographs and extremes: for residual streams, which have two bits more, and inside branches.
STREAM_MARGIN, BRANCH_MARGIN = 1.25, 2.0
# Of latents behind the analysis and before the synthesis, whose units are far below a quantisation step.
LATENT_MARGIN = 4.0
SMALLEST_FRACTION, LARGEST_FRACTION = -4, 12
LARGEST_WIDE_FRACTION = 14
# Of context planes. Linear scales: σ is covered up to 16 even in a channel where the calibration pictures have a small one only.
_LARGEST_ON_CONTEXT = {"latents": 9, "scales": 9}


class _Ranges(LargestMagnitudes):
    """Largest magnitudes, and the fractions that they ask for."""

    def __init__(self, streams: Collection[str]) -> None:
        """streams: the transforms' residual streams, which have a wider range."""
        super().__init__()
        self._streams = {*streams, "g_s"}

    def fractions(self, name: str) -> Tensor:
        """One fraction for each channel."""
        limit, margin, highest = LIMIT, MARGIN, _LARGEST_ON_CONTEXT.get(name, LARGEST_FRACTION)
        if name.partition(".")[0] in TRANSFORMS:
            margin = BRANCH_MARGIN
        if name in self._streams:
            margin = LATENT_MARGIN if name in ("g_a", "g_s") else STREAM_MARGIN
            limit, highest = WIDE, LARGEST_WIDE_FRACTION
        needed = (limit / (margin * self.by_name[name].clamp_min(1e-6))).log2().floor()
        return needed.clamp(SMALLEST_FRACTION, highest).to(torch.int8)


def calibrate(model: HPCM, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    """The units of every activation: name → fraction of each channel, int8.

    model: in evaluation mode; pictures: 1×3×H×W each, in [0, 1], H and W multiples of 64. Every picture is coded in simulation at the
    lowest, the middle and the highest rate.
    """
    ranges = _Ranges(layer_streams(model.config).values())
    _watch(model, pictures, ranges, ("h_s", "context", *TRANSFORMS))
    _watch(model, extremes(), ranges, TRANSFORMS)
    linear = model.config.scale_domain == "linear"  # logarithmic scales have one unit, which the network knows
    found = {name: ranges.fractions(name) for name in ranges.by_name if name != "scales" or linear}
    found["g_s"] = torch.minimum(found["g_s"], found["latents"] + FINE_BITS)  # decoded latents hold no more
    normalised = {_context_stream(name) for name, module in model.named_modules() if isinstance(module, RWKVBlock)}
    for name in found:
        # Products of queries and keys, and the means of a layer norm, are sums over channels that share one unit.
        if name in normalised or name.endswith((".inner.query", ".inner.key")):
            found[name] = torch.full_like(found[name], int(found[name].min()))
    return found


def extremes() -> list[Tensor]:
    """Pictures as no camera takes them, 1×3×128×128 each.

    Flat, saturated, noise, stripes and checks of one pixel, letters' edges, and rings with periods from 5 pixels on.
    """
    edge = 128
    generator = torch.Generator().manual_seed(20)
    rows, columns = torch.arange(edge)[:, None], torch.arange(edge)[None, :]
    masks = [
        torch.ones(edge, edge).bool(),
        (rows + columns) % 2 == 0,
        ((rows % 2 == 0) | (columns < 0)),
        ((columns % 2 == 0) | (rows < 0)),
        (rows // 8 + columns // 8) % 2 == 0,
        (rows // 3 % 2 == 0) & (columns // 2 % 3 == 0),
        torch.rand(edge, edge, generator=generator) < 0.5,
    ]
    colours = [torch.tensor([float(n >> shift & 1) for shift in (2, 1, 0)]) for n in range(8)]
    found = [
        torch.rand(1, 3, edge, edge, generator=generator),
        (torch.rand(1, 3, edge, edge, generator=generator) < 0.5).float(),
    ]
    distance = (rows - edge // 2) ** 2 + (columns - edge // 2) ** 2
    for spread in (150.0, 400.0):  # of the squared distance, in pixels², over which the phase grows by one radian
        found.append(torch.stack([0.5 + 0.5 * (distance / spread + phase).sin() for phase in (0.0, 2.1, 4.2)])[None])
        found.append((0.5 + 0.5 * (distance / spread).sin()).expand(1, 3, edge, edge))
    for mask in masks:
        for first in range(4):
            ink, paper = colours[first][:, None, None], colours[7 - first][:, None, None]
            found.append(torch.where(mask, ink, paper)[None])
            found.append(torch.where(mask, paper, ink)[None])
    return found


def _watch(model: HPCM, pictures: Sequence[Tensor], ranges: _Ranges, parts: tuple[str, ...]) -> None:
    """Code pictures in simulation at the lowest, the middle and the highest rate, and note what modules of these parts see."""
    streams = layer_streams(model.config)
    hooks = [hook for name, module in _watched(model, parts) for hook in _hooks(name, module, ranges, streams)]
    code_pictures(model, pictures, hooks)


def _watched(model: HPCM, parts: tuple[str, ...]) -> Iterable[tuple[str, nn.Module]]:
    # Behind its last doubling, h_s works on a context plane, whose units are those of the latents.
    last_double = max(i for i, layer in enumerate(model.h_s) if isinstance(layer, nn.ConvTranspose2d))
    on_context = {f"h_s.{i}" for i in range(last_double, len(model.h_s))}
    for name, module in model.named_modules():
        if name.partition(".")[0] in parts and name not in on_context:
            yield name, module


def _hooks(name: str, module: nn.Module, ranges: _Ranges, streams: Mapping[str, str]) -> list[Any]:
    """What to note of a module's inputs and outputs; streams: of the transforms' layers."""

    def output(as_name: str) -> Any:
        return module.register_forward_hook(lambda _, __, y: ranges.see(as_name, y))

    def argument(index: int, as_name: str) -> Any:
        return module.register_forward_pre_hook(lambda _, inputs: ranges.see(as_name, inputs[index]))

    def on_context(_: nn.Module, __: Any, y: Tensor) -> None:
        scales, means = y.chunk(2, dim=1)
        ranges.see("scales", scales)
        ranges.see("latents", means)

    def context(layer: nn.Module) -> Any:
        return layer.register_forward_hook(on_context)

    last = name.rpartition(".")[2]
    if name == "g_s":
        return [argument(0, name)]
    if name in streams:
        return [output(streams[name])]
    if isinstance(module, RateSequential) and name == "h_s":
        last_block = module[-1]
        assert isinstance(last_block, ResidualBlock)
        # A block without factors may take away much of what it gets.
        gets = [context(module[-2])] if last_block.factor is None else []
        return [argument(0, "h_s"), context(module), *gets]
    if isinstance(module, ResidualBlock):
        stream = "h_s.inner" if name.startswith("h_s") else _context_stream(name)
        return [argument(0, stream), output(stream)]
    if isinstance(module, PartialConv):
        return [module.conv.register_forward_hook(lambda _, __, y: ranges.see(name, y))]
    if last in ("spatial", "expand"):
        return [output(name)]
    if isinstance(module, StepAdaptor):
        stream = "context.prior_s3" if name.startswith("context.adaptors.2") else "context.prior_s12"
        adapted = module.register_forward_hook(lambda _, __, results: ranges.see(stream, results[0]))
        return [adapted, argument(1, "latents")]
    if isinstance(module, Prior) or (name.startswith("context.context_nets.") and name.count(".") == 2):
        return [context(module)]
    if last == "after" and name.startswith("context.prior"):
        return [argument(0, name.rpartition(".")[0])]
    if isinstance(module, CrossAttentionCell):
        # Without `widen`, values and outputs are in the units of the context they are added up to.
        added = () if module.widen is not None else (module.value, module.output)
        return [context(module), *map(context, added)]
    if isinstance(module, RWKVContextCell):
        return [context(module)]
    if isinstance(module, RWKVBlock):
        return [argument(0, _context_stream(name)), output(_context_stream(name))]
    if name.startswith("context."):
        if last == "norm2":
            return [argument(0, _context_stream(name)), output(name)]
        if last in ("query", "value", "shift", "norm1"):
            return [output(name)]
        if last == "key" and not name.endswith("spatial_mix.key"):
            return [output(name)]
        if last == "enter":
            return [output(name.rpartition(".")[0])]
    return []


def _context_stream(name: str) -> str:
    """The residual stream of the context model that a module inside of it belongs to: a prior's, a cell's, or that of a fusion block."""
    return name.split(".before.")[0].split(".after.")[0].partition(".block")[0]
