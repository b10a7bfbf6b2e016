"""The hyperprior's parameters on the planes of s1, s2 and s3: of numpy arrays and of tensors, in floating point and in integers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.model import schedule
from hpcm_codec.model.config import HyperGather

Array = Any  # a numpy array or a torch tensor; all those of one call are of one kind
Planes = tuple[Array, Array, Array]

# What the published code leaves out of the 4×4 cell for the groups 0..7 when it gathers the hyperprior for s2.
_PUBLISHED_LEFT_OUT = ((0, 0), (1, 1), (0, 1), (1, 0), (0, 2), (1, 3), (0, 3), (1, 2))


def hyper_planes(hyper_params: Array, gather: HyperGather = "aligned") -> Planes:
    """The hyperprior's parameters (…, 2M, h, w) on the planes of s1, s2 and s3; gather: `ModelConfig.hyper_gather`."""
    full = halves(hyper_params)
    s1, s2, _ = schedule.scales(full.shape[-3])
    assert s1.inside is not None and s2.inside is not None
    on_s2 = s2.inside.take(full)
    on_s1 = s1.inside.take(on_s2)
    if gather == "published":
        on_s2 = _published_on_s2(full, on_s2)
    return joined(on_s1), joined(on_s2), hyper_params


def halves(params: Array) -> Array:
    """(…, 2M, h, w) → (…, 2, M, h, w): scales and means."""
    *batch, channels, height, width = params.shape
    return params.reshape(*batch, 2, channels // 2, height, width)


def joined(parts: Array) -> Array:
    """The inverse of `halves`."""
    *batch, _, channels, height, width = parts.shape
    return parts.reshape(*batch, 2 * channels, height, width)


def _published_on_s2(full: Array, on_s2: Array) -> Array:
    """The published code's misplaced gather of the hyperprior for s2, for weights that were trained with it.

    full: …×M×h×w; on_s2: the aligned gather, …×M×h/2×w/2. Returns a plane like `on_s2`.
    """
    height, width = full.shape[-2:]
    group = full.shape[-3] // schedule.GROUPS
    out = on_s2.copy(order="K") if isinstance(on_s2, np.ndarray) else on_s2.clone()
    for index in range(schedule.GROUPS):
        channels = slice(index * group, (index + 1) * group)
        flat = full[..., channels, :, :].reshape(*full.shape[:-3], group, height * width)
        part = out[..., channels, :, :]
        out[..., channels, :, :] = flat[..., _sources(height, width, index, full)].reshape(part.shape)
    return out


def _sources(height: int, width: int, group: int, like: Array) -> Array:
    """`_published_sources` where `like` is."""
    if isinstance(like, np.ndarray):
        return _published_sources(height, width, group)
    return _sources_on(height, width, group, like.device)


@lru_cache(maxsize=64)
def _published_sources(height: int, width: int, group: int) -> NDArray[np.int64]:
    """Where in the full plane h×w, row-major, a channel group's values on s2 come from: int64, one for each place of s2, row-major.

    Places that s1 has coded keep their own (nothing reads them); the others get, in row-major order, what the published table leaves.
    """
    row, column = schedule.S2_OFFSETS[group % 4]
    coded_row, coded_column = schedule.S1_OFFSETS[group // 2]
    left_out_row, left_out_column = _PUBLISHED_LEFT_OUT[group]
    own = np.arange(height * width, dtype=np.int64).reshape(height, width)
    left_out, coded = np.zeros(own.shape, bool), np.zeros((height // 2, width // 2), bool)
    left_out[left_out_row::4, left_out_column::4] = True
    coded[coded_row::2, coded_column::2] = True
    aligned = own[row::2, column::2]
    sources = aligned.copy()
    sources[~coded] = aligned[~left_out[row::2, column::2]]
    return sources.reshape(-1)


@lru_cache(maxsize=64)
def _sources_on(height: int, width: int, group: int, device: Any) -> Array:
    """On a torch device; kept, since copying them from the host would make the device wait."""
    import torch

    return torch.from_numpy(_published_sources(height, width, group)).to(device)
