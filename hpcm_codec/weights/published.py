"""Published HPCM checkpoints (https://github.com/lyq133/LIC-HPCM, ICCV 2025) as weights of ours.

A published file is a pickled dictionary of tensors. It is read with `weights_only=True`, which runs nothing that it holds; whether it is
HPCM-Base or HPCM-Large is seen from its names; every tensor is renamed, and none may be missing or left over. The file's buffers are not
taken: the entropy coder's tables are our own, from the same distribution.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcm_codec.entropy.sigmas import SMALLEST_SIGMA
from hpcm_codec.errors import FileError, HpcmError, UnsupportedError
from hpcm_codec.model.config import ModelConfig, preset
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.published import our_name
from hpcm_codec.system.files import file_error

SHAPE = 1.5  # β of the generalised Gaussian that the weights were trained with
_WRAPPER = "module."  # what torch.nn.DataParallel puts before every name
_BUFFERS = re.compile(r"scale_table|(quantized_cdf|cdf_length|offset)_[yz]|entropy_estimation\..+")
_GAINS = re.compile(r"context\.adaptors\.\d\.\d\.gain\.level_values")
_RWKV = re.compile(r"(^|\.)(omni_shift\.|(spatial_)?(decay|boost|first)$)")
_PRESETS = {"HPCM-Base": "hpcm-base", "HPCM-Large": "hpcm-large"}
_LARGE_ONLY = "g_a.branch.15.weight"  # HPCM-Large's analysis has four layers more
_SHOWN = 4  # names in a message
_ADVICE = "HPCM-Base and HPCM-Large of github.com/lyq133/LIC-HPCM can be imported"


@dataclass(frozen=True)
class Published:
    """A published checkpoint under our names.

    weights: in the types that the file has them in; record: for the checkpoint's training record: name, SHA-256 and kind of the source.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    record: dict[str, Any]


def read_published(path: Path) -> Published:
    """Read a published checkpoint; raises FileError for what is damaged or no such file, UnsupportedError for other networks."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise file_error(path, error) from error
    digest = hashlib.sha256(content).hexdigest()
    try:
        tensors = _tensors(content)
        del content  # as large as the weights
        kind, weights = translated(tensors)
    except HpcmError as error:
        raise error.in_file(path) from None
    record = {
        "imported": kind,
        "source": path.name,
        "source_sha256": digest,
        "source_tensors": len(weights),
    }
    config = replace(preset(_PRESETS[kind]), hyper_gather="published")
    expected = _expected(config)
    gains = [name for name in expected if _GAINS.fullmatch(name)]
    if not any(name in weights for name in gains):
        # The published HPCM-Large keeps them outside of its state, at 1.
        weights |= {name: torch.ones(expected[name]) for name in gains}
        record["gains"] = "not in the source: 1"
    return Published(config, _fitting(weights, expected, kind, path), record)


def _tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a pickled state dictionary by their published names."""
    try:
        loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        # Without torch's own message, which advises to run what is pickled.
        reason = "damaged, no file of torch.save, or with more than tensors pickled in it, which is not read"
        raise FileError(reason, advice=f"fetch it again; {_ADVICE}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(name, str) for name in loaded):
        raise UnsupportedError("not a dictionary of tensors", advice=_ADVICE)
    others = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise UnsupportedError(f"not only tensors, but also {_some(others)}", advice=_ADVICE)
    if all(name.startswith(_WRAPPER) for name in loaded):
        return {name.removeprefix(_WRAPPER): value for name, value in loaded.items()}
    return dict(loaded)


def translated(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Which of the published networks the tensors are of, and the tensors under our names, without buffers.

    Raises UnsupportedError, with the network's name where it is known, for every other network.
    """
    refuse_others(tensors)
    weights = {}
    left_over = []
    for name, value in tensors.items():
        if _BUFFERS.fullmatch(name):
            _check_buffer(name, value)
            continue
        try:
            weights[our_name(name)] = value
        except (KeyError, ValueError):  # ValueError: an adaptor of a step that there is not
            left_over.append(name)
    if left_over:
        raise UnsupportedError(f"tensors that HPCM does not have: {_some(left_over)}", advice=_ADVICE)
    return "HPCM-Large" if _LARGE_ONLY in tensors else "HPCM-Base", weights


def refuse_others(names: Any) -> None:
    """Raise UnsupportedError, saying why, for the names of a network that is known and not ours to run."""
    names = list(names)
    with_rwkv = [name for name in names if _RWKV.search(name)]
    hpcm = any(name.startswith("y_spatial_prior_") for name in names)
    if with_rwkv and hpcm:
        raise UnsupportedError(
            f"an HPCM network with RWKV blocks of another program ({_some(with_rwkv)}): its kernels compute another Bi-WKV than the "
            "formula, and weights that were trained with them would not fit here",
            advice="train such a network with `hpcm train run --model phase2`",
        )
    if with_rwkv:
        lalic = any(".att.omni_shift." in name for name in names)
        raise UnsupportedError(
            f"{'a checkpoint of LALIC' if lalic else 'a checkpoint of another RWKV network'} ({_some(with_rwkv)}): its transforms and its "
            "context model are not HPCM's, and its kernels compute another Bi-WKV than the formula",
            advice=_ADVICE,
        )
    if hpcm and not any(name.startswith("attn_s") for name in names):
        raise UnsupportedError(
            "HPCM_Phi_Context, or another HPCM without attention, which we do not have", advice=_ADVICE
        )
    if not hpcm:
        raise UnsupportedError(f"not a checkpoint of HPCM; it has {_some(names)}", advice=_ADVICE)


def _check_buffer(name: str, value: Tensor) -> None:
    """Refuse a distribution with another shape or another smallest scale than ours."""
    expected = {"entropy_estimation.beta": SHAPE, "entropy_estimation.scale_lower_bound.bound": SMALLEST_SIGMA}.get(
        name
    )
    if expected is not None and not (value.double() - expected).abs().le(1e-6).all():
        found = value.flatten()[:1].tolist()
        raise UnsupportedError(f"{name} is {found}, not {expected}: another distribution than ours", advice=_ADVICE)


def _expected(config: ModelConfig) -> dict[str, torch.Size]:
    """Names and shapes of a model's tensors."""
    with torch.device("meta"):
        return {name: value.shape for name, value in HPCM(config).state_dict().items()}


def _fitting(weights: dict[str, Tensor], expected: dict[str, torch.Size], kind: str, path: Path) -> dict[str, Tensor]:
    """The weights in our shapes; raises UnsupportedError unless they are those of the model, all of them, and finite numbers."""
    missing, left_over = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    for names, what in ((missing, "missing"), (left_over, "left over")):
        if names:
            raise UnsupportedError(f"almost {kind}, but {what}: {_some(names)}", file=path, advice=_ADVICE)
    fitting = {}
    for name, shape in expected.items():
        value = weights[name]
        # Ours have no axes of length 1 around the channels of gains and distributions.
        same = [side for side in value.shape if side != 1] == [side for side in shape if side != 1]
        if not (same and value.is_floating_point()):
            found = f"{tuple(value.shape)} of {value.dtype}"
            raise UnsupportedError(f"{name} is {found}, not {tuple(shape)} as in {kind}", file=path, advice=_ADVICE)
        if not value.isfinite().all():
            raise FileError(f"{name} is not finite", file=path, advice="fetch it again")
        fitting[name] = value.detach().reshape(shape)
    return fitting


def _some(names: list[str]) -> str:
    """The first names of a list.

    >>> _some(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
