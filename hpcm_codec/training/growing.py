"""A trained patch model made larger, without losing what it has learned: more latents, overlapping patches, deeper transforms.

How many latents a 16×16 block has bounds how well it can be drawn at any rate: 192 of 768 samples leave even the best linear
transform (principal components) at 37.4 dB on the validation pictures, 256 at 40.3 dB. A grown model computes exactly what the small
one did: kernels grow by zeros, new residual blocks start as the identity. New latents are added to that: the coarsest block frequencies
that the old ones do not span, coded at first with a constant scale and drawn by the transposed analysis. Training continues from there.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.blocks import RateSequential, ResidualBlock, silence
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.schedule import GROUPS
from hpcm_codec.model.transforms import haar_pairs

# A generalised Gaussian of shape 1.5 and scale s has standard deviation 0.859·s.
_SCALE_OF_DEVIATION = 1 / math.sqrt(math.gamma(2) / math.gamma(2 / 3))

_GROWING = ("latent_channels", "patch_kernel", "patch_blocks")


@torch.no_grad()
def grow(small: HPCM, config: ModelConfig, x: Tensor) -> HPCM:
    """A model of `config` that starts as `small` and has more latent channels, larger kernels or more blocks.

    small:  a trained patch model in evaluation mode.
    config: equal to its own but for `name`, and no smaller in `latent_channels`, `patch_kernel` and `patch_blocks`.
    x:      pictures B×3×H×W in [0, 1], H and W multiples of 64, on which the scales of new latents are measured.
    Raises UnsupportedError when the two differ in more than that.
    """
    before = small.config
    sizes = {field: getattr(config, field) for field in _GROWING}
    if replace(before, name=config.name, **sizes) != config or any(sizes[f] < getattr(before, f) for f in _GROWING):
        raise UnsupportedError(f"a model grows in {', '.join(_GROWING)} only, and nothing else may differ")
    if config.transform != "patch":
        raise UnsupportedError("only patch models can grow")
    deep = _deepened(small, replace(config, latent_channels=before.latent_channels))
    return deep if config == deep.config else _widened(deep, config, x)


def _deepened(small: HPCM, config: ModelConfig) -> HPCM:
    """The same function with larger kernels and more blocks."""
    deep = HPCM(config).eval()
    fresh, trained = deep.state_dict(), small.state_dict()
    transforms = ("g_a.", "g_s.")
    deep.load_state_dict({name: (fresh if name.startswith(transforms) else trained)[name] for name in fresh})
    added = config.patch_blocks - small.config.patch_blocks
    halving = max(i for i, layer in enumerate(small.g_a) if isinstance(layer, nn.Conv2d))
    _deepen(small.g_a, deep.g_a, halving, added)
    _deepen(small.g_s, deep.g_s, len(small.g_s) - 1, added)
    return deep


def _deepen(small: RateSequential, deep: RateSequential, end: int, added: int) -> None:
    """Copy the layers of a transform, with `added` identity blocks before the layer `end`."""
    trained, fresh = list(small), list(deep)
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    for index, layer in enumerate(trained):
        larger = fresh[index if index < end else index + added]
        weights = layer.state_dict()
        if isinstance(layer, convolutions) and isinstance(larger, convolutions):
            ring = (larger.kernel_size[0] - layer.kernel_size[0]) // 2
            weights["weight"] = functional.pad(weights["weight"], (ring,) * 4)
        larger.load_state_dict(weights)
    like = trained[end - 1]
    for block in fresh[end : end + added]:
        assert isinstance(block, ResidualBlock) and isinstance(like, ResidualBlock)
        silence(block.project, 0.0)
        if block.factor is not None and like.factor is not None:
            block.factor.load_state_dict(like.factor.state_dict())


def _widened(narrow: HPCM, config: ModelConfig, x: Tensor) -> HPCM:
    """The same function plus latents; see `grow`."""
    before, after = narrow.config.latent_channels, config.latent_channels
    wide = HPCM(config).eval()
    old = _old_channels(before, after)
    new = torch.tensor(sorted(set(range(after)) - set(old.tolist())))
    fresh, trained = wide.state_dict(), narrow.state_dict()
    weights = {name: _embedded(name, trained[name], fresh[name], before, after, old) for name in fresh}
    _add_latents(weights, narrow, old, new)
    wide.load_state_dict(weights)
    deviation = wide.analyse(x)[:, new].square().mean(dim=(0, 2, 3)).sqrt().clamp_min(1e-3)
    last_up = [layer for layer in wide.h_s if isinstance(layer, nn.ConvTranspose2d)][-1]
    assert last_up.bias is not None
    last_up.bias[new] = (deviation * _SCALE_OF_DEVIATION).log()
    return wide


def _old_channels(before: int, after: int) -> Tensor:
    """Where the old channels lie in the wide model: each of the schedule's groups grows at its end."""
    return torch.cat([torch.arange(before // GROUPS) + group * (after // GROUPS) for group in range(GROUPS)])


# Where new channels keep their initial values: the way into hidden units (their way out is zero), factors of branches that are zero.
_KEPT_INITIAL = ("spatial.weight", "spatial.bias", "expand.weight", "expand.bias", "factor.level_values")


def _embedded(name: str, trained: Tensor, fresh: Tensor, before: int, after: int, old: Tensor) -> Tensor:
    """A wide tensor that does on the old channels what the trained one did, with nothing added to them by the new ones.

    Axes that grow are made of one or more blocks of latent channels.
    """
    indexes = []
    for size_before, size_after in zip(trained.shape, fresh.shape, strict=True):
        blocks = size_before // before if size_before != size_after else 0
        assert size_before == size_after or (size_before, size_after) == (blocks * before, blocks * after)
        grown = [old + block * after for block in range(blocks)]
        indexes.append(torch.cat(grown) if grown else torch.arange(size_before))
    wide = fresh.clone() if name.endswith(_KEPT_INITIAL) else torch.zeros_like(fresh)
    if name.endswith("expand.weight"):
        wide[indexes[0]] = 0  # old hidden units ignore new channels
    wide[torch.meshgrid(*indexes, indexing="ij")] = trained
    return wide


def _add_latents(weights: dict[str, Tensor], narrow: HPCM, old: Tensor, new: Tensor) -> None:
    """Give the new channels an analysis, a synthesis, gains, and a way for their parameters through the context model."""
    halve = max(i for i, layer in enumerate(narrow.g_a) if isinstance(layer, nn.Conv2d))
    double = min(i for i, layer in enumerate(narrow.g_s) if isinstance(layer, nn.ConvTranspose2d))
    analysis, synthesis = weights[f"g_a.{halve}.weight"], weights[f"g_s.{double}.weight"]
    rows = analysis[old].flatten(1)
    unit = rows.norm(dim=1).median()
    directions = _unseen_directions(rows, len(new)).reshape(len(new), *analysis.shape[1:])
    analysis[new] = directions * unit
    synthesis[new] = directions / unit
    if "rate_control.log_gain" in weights:
        gains = weights["rate_control.log_gain"]
        gains[:, new] = gains[:, old].mean(dim=1, keepdim=True)
    # The networks between scales start as the identity; the new channels' rows have to as well. RWKV blocks there add to their input.
    after = len(old) + len(new)
    if narrow.config.context_fusion is not None:
        return
    for index in range(len(narrow.context.context_nets)):
        net = weights[f"context.context_nets.{index}.weight"]
        for half in range(2):
            net[new + half * after, new + half * after] = 1.0


def _unseen_directions(rows: Tensor, count: int) -> Tensor:
    """The block frequencies, count×4C and orthonormal, lowest first, that are mostly outside the span of the rows n×4C."""
    basis, _ = torch.linalg.qr(rows.double().T)
    added: list[Tensor] = []
    for candidate in haar_pairs().flatten(1):
        direction = candidate - basis @ (basis.T @ candidate)
        if direction.norm() > 0.7:
            direction /= direction.norm()
            basis = torch.cat((basis, direction[:, None]), dim=1)
            added.append(direction)
        if len(added) == count:
            break
    return torch.stack(added).float()
