"""Settings of a model: one frozen dataclass, JSON both ways, and the presets that have names.

Every variant of the network (the published HPCM-Base, the phases with RWKV cells, the small default model) is a
`ModelConfig`; none is a class of its own. Values follow HPCM (arXiv 2507.19125) unless a field says otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hpcm_codec.errors import UnsupportedError, printable

# The published HPCM rate points; our levels span the same range, log-spaced.
PATCH = 8  # edge of the patch projection, in pixels
LOWEST_LAMBDA = 0.0018
HIGHEST_LAMBDA = 0.0483
HyperGather = Literal["aligned", "published"]
_LARGEST_NUMBER = 4096  # of channels or blocks in a configuration that is read: more than any machine can train
_MAY_BE_ZERO = ("staircase_blocks", "patch_blocks", "prior_blocks_s12", "prior_blocks_s3")


@dataclass(frozen=True)
class CellConfig:
    """One context cell, called after every coding step of its scale.

    kind:        "cross-attention" (windowed) or "rwkv" (bi-directional, the whole lattice).
    window:      window edge in latents; cross-attention only.
    heads:       attention heads; must divide the width. Cross-attention only.
    width:       inner channels; None is 2M, the published width.
    hidden_rate: expansion of the channel mix; RWKV only.
    residual:    add the parameters to the output, so that a narrow cell is no bottleneck (ours, not in HPCM).
    """

    kind: Literal["cross-attention", "rwkv"] = "cross-attention"
    window: int = 8
    heads: int = 32
    width: int | None = None
    hidden_rate: float = 4.0
    residual: bool = False


@dataclass(frozen=True)
class FusionConfig:
    """An RWKV block that refines the context between two scales, in place of a 1×1 convolution (Phase 3).

    width:       inner channels; None is 2M.
    hidden_rate: expansion of the channel mix.
    """

    width: int | None = None
    hidden_rate: float = 4.0


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shapes and the arithmetic of an HPCM network.

    latent_channels:   M, a multiple of 8 (the schedule deals channels to 8 groups).
    hyper_channels:    N.
    transform:         "staircase" (HPCM: four halvings) or "patch" (8x8 DCT-initialised projection, then one halving).
    staircase_blocks:  residual blocks at 1/8 resolution, in each direction; "staircase" only.
    patch_kernel:      edge in pixels of what a patch sees and draws, a multiple of 8; above 8 they overlap; "patch" only.
    patch_blocks:      residual blocks at 1/8 resolution, in each direction; "patch" only.
    cells:             the cells at the scales s1, s2, s3.
    prior_width:       channels inside the priors; None is 3M, the published width.
    prior_blocks_s12:  residual blocks before and after the gain in the prior shared by s1 and s2.
    prior_blocks_s3:   the same in the prior of s3.
    prior_rwkv_rate:   RWKV blocks stand in the priors (Phase 4), and this is their channel mixes' expansion; None: depthwise ones.
    context_fusion:    the RWKV block between two scales (Phase 3); None: a 1×1 convolution.
    prior_residual:    priors refine the context by addition instead of replacing it (ours).
    phase_bias:        a learned bias per position of the coding cell, telling which neighbours are decoded (ours).
    scale_domain:      "linear": the network puts out scales; "log": their natural logarithms.
    rate_levels:       number of rate anchors of a variable-rate model; 1 is a fixed-rate model without gains.
    residual_factors:  residual branches carry a per-channel, per-rate factor that starts near zero (ours).
    hyper_gather:      "aligned", or "published" for the misplaced s2 gather that published weights have absorbed.
    use_checkpoint:    recompute the activations of cells and of all RWKV blocks in the backward pass (saves memory in training only).
    """

    name: str = "hpcm-base"
    latent_channels: int = 320
    hyper_channels: int = 256
    transform: Literal["staircase", "patch"] = "staircase"
    staircase_blocks: int = 4
    patch_kernel: int = 8
    patch_blocks: int = 4
    cells: tuple[CellConfig, CellConfig, CellConfig] = field(
        default=(CellConfig(window=4), CellConfig(window=8), CellConfig(window=8))
    )
    prior_width: int | None = None
    prior_blocks_s12: tuple[int, int] = (2, 1)
    prior_blocks_s3: tuple[int, int] = (3, 2)
    prior_rwkv_rate: float | None = None
    context_fusion: FusionConfig | None = None
    prior_residual: bool = False
    phase_bias: bool = False
    scale_domain: Literal["linear", "log"] = "linear"
    rate_levels: int = 1
    residual_factors: bool = False
    hyper_gather: HyperGather = "aligned"
    use_checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.latent_channels % 8:
            raise ValueError(f"latent_channels must be a multiple of 8, not {self.latent_channels}")
        if self.patch_kernel < 8 or self.patch_kernel % 8:
            raise ValueError(f"patch_kernel must be a multiple of 8, not {self.patch_kernel}")
        for cell in self.cells:
            if cell.kind == "cross-attention" and (cell.width or 2 * self.latent_channels) % cell.heads:
                raise ValueError("the heads of a cross-attention cell must divide its width")

    @property
    def lambdas(self) -> tuple[float, ...]:
        """The rate-distortion weight of each level, lowest rate first (loss: lambda * 255^2 * MSE + bpp)."""
        if self.rate_levels == 1:
            return (HIGHEST_LAMBDA,)
        ratio = HIGHEST_LAMBDA / LOWEST_LAMBDA
        return tuple(LOWEST_LAMBDA * ratio ** (i / (self.rate_levels - 1)) for i in range(self.rate_levels))

    def to_json(self) -> str:
        """The configuration as one line of JSON with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Rebuild a configuration; raises UnsupportedError for fields or values that this version does not know."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or not {"name", "cells"} <= values.keys():
                raise ValueError("it has no name or no cells")
            config: ModelConfig = _read_fields("the configuration", values, cls)
            return config
        except (ValueError, RecursionError) as error:
            raise UnsupportedError(
                f"the model configuration is not one this version knows: {error}",
                advice="a newer version of hpcm-codec may know it; if there is none, fetch the checkpoint again",
            ) from error


def _read(name: str, value: Any, kind: Any) -> Any:
    """A value of JSON as a field's type has it; raises ValueError, naming the field, for another type or a number out of range."""
    if dataclasses.is_dataclass(kind):
        return _read_fields(name, value, kind)
    choices = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return None if value is None else _read(name, value, choices[0])
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list) or len(value) != len(choices):
            raise ValueError(f"{name} has to be a list of {len(choices)}")
        return tuple(_read(name, part, choice) for part, choice in zip(value, choices, strict=True))
    if typing.get_origin(kind) is Literal:
        valid = isinstance(value, str) and value in choices
        expected = f"one of {', '.join(choices)}"
    elif kind is str:
        valid = isinstance(value, str) and 0 < len(value) <= 100 and printable(value) == value
        expected = "a name in one line"
    elif kind is bool:
        valid, expected = isinstance(value, bool), "true or false"
    elif kind is int:
        smallest = 0 if name in _MAY_BE_ZERO else 1
        valid = type(value) is int and smallest <= value <= _LARGEST_NUMBER
        expected = f"a whole number from {smallest} to {_LARGEST_NUMBER}"
    else:
        valid = type(value) in (int, float) and 0 < value <= _LARGEST_NUMBER
        expected = f"a number above 0 and up to {_LARGEST_NUMBER}"
    if not valid:
        raise ValueError(f"{name} has to be {expected}")
    return value


def _read_fields(name: str, value: Any, kind: Any) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(value, dict):
        raise ValueError(f"{name} has to be a list of named values")
    if unknown := sorted(value.keys() - hints.keys()):
        raise ValueError(f"there is a field {printable(unknown[0])[:100]!r}")
    return kind(**{key: _read(key, part, hints[key]) for key, part in value.items()})


def _rwkv_at_s3(**cell: Any) -> tuple[CellConfig, CellConfig, CellConfig]:
    return (CellConfig(window=4), CellConfig(window=8), CellConfig(kind="rwkv", **cell))


def _rwkv_everywhere(**cell: Any) -> tuple[CellConfig, CellConfig, CellConfig]:
    s1, s2, s3 = (CellConfig(kind="rwkv", hidden_rate=rate, **cell) for rate in (2.0, 3.0, 4.0))
    return s1, s2, s3


_LITE_CELL: dict[str, Any] = {"width": 192, "heads": 8, "residual": True}

_LITE = ModelConfig(
    name="phase1-lite",
    latent_channels=320,
    hyper_channels=96,
    transform="patch",
    patch_kernel=16,
    patch_blocks=8,
    cells=(
        CellConfig(window=4, **_LITE_CELL),
        CellConfig(window=8, **_LITE_CELL),
        CellConfig(kind="rwkv", hidden_rate=2.0, **_LITE_CELL),
    ),
    prior_width=256,
    prior_blocks_s12=(1, 1),
    prior_blocks_s3=(1, 2),
    prior_residual=True,
    phase_bias=True,
    scale_domain="log",
    rate_levels=8,
    residual_factors=True,
)


def _phases(
    suffix: str, base: ModelConfig, cell: dict[str, Any], fusion: FusionConfig, prior_rate: float
) -> tuple[ModelConfig, ModelConfig, ModelConfig]:
    """Phases 2, 3 and 4 of a model, each the one before it and a change.

    cell: of all cells, but for kind and hidden rate; fusion, prior_rate: what Phases 3 and 4 add.
    """
    second = replace(base, name=f"phase2{suffix}", cells=_rwkv_everywhere(**cell))
    third = replace(second, name=f"phase3{suffix}", context_fusion=fusion)
    return second, third, replace(third, name=f"phase4{suffix}", prior_rwkv_rate=prior_rate)


PRESETS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        ModelConfig(name="hpcm-base"),
        ModelConfig(name="hpcm-large", staircase_blocks=8, prior_blocks_s12=(2, 2), prior_blocks_s3=(4, 3)),
        ModelConfig(name="phase1", cells=_rwkv_at_s3(hidden_rate=4.0)),
        # a cell that meets what Phase 1 was planned to save (docs/benchmarks.md); residual, as it is narrower than its context
        ModelConfig(name="phase1-slim", cells=_rwkv_at_s3(width=256, hidden_rate=3.0, residual=True)),
        *_phases("", ModelConfig(), {}, FusionConfig(), prior_rate=4.0),
        _LITE,
        *_phases("-lite", _LITE, _LITE_CELL, FusionConfig(width=192, hidden_rate=2.0), prior_rate=2.0),
    )
}


def preset(name: str) -> ModelConfig:
    """The preset of that name; raises UnsupportedError naming the ones there are."""
    try:
        return PRESETS[name]
    except KeyError:
        raise UnsupportedError(f"no model preset is called {name!r}; there are {', '.join(PRESETS)}") from None
