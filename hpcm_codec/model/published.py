"""Names of the published HPCM-Base and HPCM-Large checkpoints, translated to ours: what an importer of their weights needs.

The published code indexes the adaptors of s2 and s3 by step − 1, so each list's last entry serves the first step.
Their weights also need `hyper_gather="published"` (see `planes.hyper_planes`).
"""

from __future__ import annotations

import re

_BLOCK = {"0.pconv": "spatial.conv", "0": "spatial", "1": "expand", "3": "project"}
_ADAPTOR_ORDER = {"s1": (0,), "s2": (2, 0, 1), "s3": (5, 0, 1, 2, 3, 4)}
_GAIN_STEPS = [(0, 0), *((1, i) for i in range(3)), *((2, i) for i in range(6))]


def our_name(published: str) -> str:
    """The name in `HPCM.state_dict()` of a published parameter; raises KeyError for one that is unknown."""
    if published in ("means_hyper", "scales_hyper"):
        return {"means_hyper": "hyper_mean", "scales_hyper": "hyper_scale"}[published] + ".level_values"
    if match := re.fullmatch(r"(g_a|g_s|h_a|h_s)\.branch\.(\d+)\.branch\.(0\.pconv|[013])\.(weight|bias)", published):
        return f"{match[1]}.{match[2]}.{_BLOCK[match[3]]}.{match[4]}"
    if match := re.fullmatch(r"(g_a|g_s|h_a|h_s)\.branch\.(\d+)\.(weight|bias)", published):
        return f"{match[1]}.{match[2]}.{match[3]}"
    if match := re.fullmatch(r"y_spatial_prior_adaptor_list_(s[123])\.(\d)\.(weight|bias)", published):
        step = _ADAPTOR_ORDER[match[1]].index(int(match[2]))
        return f"context.adaptors.{int(match[1][1]) - 1}.{step}.adapt.{match[3]}"
    if match := re.fullmatch(
        r"y_spatial_prior_(s1_s2|s3)\.branch_([12])\.(\d)\.(?:branch\.(\d)\.)?(weight|bias)", published
    ):
        prior = "context.prior_s12" if match[1] == "s1_s2" else "context.prior_s3"
        if match[4] is None:
            return f"{prior}.head.{match[5]}"
        return f"{prior}.{'before' if match[2] == '1' else 'after'}.{match[3]}.{_BLOCK[match[4]]}.{match[5]}"
    if match := re.fullmatch(r"adaptive_params_list\.(\d)", published):
        scale, step = _GAIN_STEPS[int(match[1])]
        return f"context.adaptors.{scale}.{step}.gain.level_values"
    if match := re.fullmatch(r"attn_s([123])\.conv_([qkv]|out)\.(weight|bias)", published):
        layer = {"q": "query", "k": "key", "v": "value", "out": "output"}[match[2]]
        return f"context.cells.{int(match[1]) - 1}.inner.{layer}.{match[3]}"
    if match := re.fullmatch(r"context_net\.([01])\.(weight|bias)", published):
        return f"context.context_nets.{match[1]}.{match[2]}"
    raise KeyError(published)
