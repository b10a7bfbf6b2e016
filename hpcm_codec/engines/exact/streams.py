"""Residual streams of the transforms: what lies between two changes of resolution has one set of units, and a name in the checkpoint."""

from __future__ import annotations

from hpcm_codec.model.config import ModelConfig

TRANSFORMS = ("g_a", "h_a", "g_s")


def layer_streams(config: ModelConfig) -> dict[str, str]:
    """The stream that each layer of a transform, such as "g_a.3", puts its results in; in the order of the layers.

    Not of the layer that draws pixels, nor of the hyper synthesis, whose streams are `h_s.inner` and the context. What enters the
    synthesis is the stream `g_s`.
    """
    runs: dict[str, tuple[tuple[str, int], ...]]  # a transform's streams, and how many layers put their results there
    if config.transform == "patch":
        inner = 1 + config.patch_blocks
        runs = {
            "g_a": (("g_a.inner", inner), ("g_a", 2)),
            "h_a": (("h_a.inner", 3), ("h_a", 1)),
            "g_s": (("g_s", 1), ("g_s.inner", inner)),
        }
    else:
        eighth = 1 + config.staircase_blocks
        runs = {
            "g_a": (("g_a.half", 3), ("g_a.quarter", 3), ("g_a.eighth", eighth), ("g_a", 1)),
            "h_a": (("g_a", 1), ("h_a.inner", 4), ("h_a", 1)),
            "g_s": (("g_s.eighth", eighth), ("g_s.quarter", 3), ("g_s.half", 3)),
        }
    found: dict[str, str] = {}
    for part, streams in runs.items():
        in_order = [stream for stream, count in streams for _ in range(count)]
        found |= {f"{part}.{number}": stream for number, stream in enumerate(in_order)}
    return found


def layers_of(config: ModelConfig, part: str) -> list[tuple[str, str]]:
    """The layers of one transform and their streams, in order."""
    return [(name, stream) for name, stream in layer_streams(config).items() if name.startswith(f"{part}.")]


def hyper_synthesis_blocks(config: ModelConfig) -> int:
    """Residual blocks of the hyper synthesis on the stream `h_s.inner`."""
    return 2 if config.transform == "patch" else 3
