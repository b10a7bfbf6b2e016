"""Published HPCM checkpoints (https://github.com/lyq133/LIC-HPCM, ICCV 2025) as weights of ours.

A published file is a pickled dictionary of tensors (`weights.pickled` reads it). Whether it is HPCM-Base or HPCM-Large is seen from its
names; every tensor is renamed, and none may be missing or left over. The file's buffers are not taken: the entropy coder's tables are our
own, from the same distribution.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcm_codec.entropy.sigmas import SMALLEST_SIGMA
from hpcm_codec.errors import FileError, HpcmError, UnsupportedError, listed
from hpcm_codec.model.config import ModelConfig, preset
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.published import our_name
from hpcm_codec.system.files import file_error
from hpcm_codec.weights.identity import AGAIN
from hpcm_codec.weights.pickled import read_state

SHAPE = 1.5  # β of the generalised Gaussian that the weights were trained with
_BUFFERS = re.compile(r"scale_table|(quantized_cdf|cdf_length|offset)_[yz]|entropy_estimation\..+")
_GAINS = re.compile(r"context\.adaptors\.\d\.\d\.gain\.level_values")
_RWKV = re.compile(r"(^|\.)(omni_shift\.|(spatial_)?(decay|boost|first)$)")
_PRESETS = {"HPCM-Base": "hpcm-base", "HPCM-Large": "hpcm-large"}
_LARGE_ONLY = "g_a.branch.15.weight"  # HPCM-Large's analysis has four layers more
_SAFETENSORS_HEADER = 8  # where it begins, as JSON
_OWN = b'"hpcm-'  # what the formats of our own files begin with
_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
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
        _refuse_safetensors(content)
        tensors = read_state(content)
        del content  # as large as the weights
        kind, sources = translated(tensors)
        config = replace(preset(_PRESETS[kind]), hyper_gather="published")
        expected = _expected(config)
        gains = _gains_outside(kind, sources, expected)
        weights = _fitting(tensors, sources, {n: shape for n, shape in expected.items() if n not in gains}, kind)
    except HpcmError as error:
        raise error.in_file(path) from None
    record = {
        "imported": kind,
        "source": path.name,
        "source_sha256": digest,
        "source_tensors": len(sources),
    }
    if gains:
        record["gains"] = "not in the source: 1"
    return Published(config, weights | gains, record)


def _refuse_safetensors(content: bytes) -> None:
    """Raise UnsupportedError for safetensors files, our own checkpoints and families among them."""
    start = _SAFETENSORS_HEADER
    if content[start : start + 1] != b"{":
        return
    if content.find(_OWN, start, start + int.from_bytes(content[:start], "little")) >= 0:
        raise UnsupportedError("it is a checkpoint of this program already", advice="use it as it is, with --model")
    raise UnsupportedError("a safetensors file, not one of torch.save", advice=_ADVICE)


def translated(tensors: dict[str, Tensor]) -> tuple[str, dict[str, str]]:
    """Which of the published networks the tensors are of, and their names by ours, without buffers.

    Raises UnsupportedError, with the network's name where it is known, for every other network.
    """
    refuse_others(tensors)
    sources: dict[str, str] = {}
    left_over = []
    for name, value in tensors.items():
        if _BUFFERS.fullmatch(name):
            _check_buffer(name, value)
            continue
        try:
            ours = our_name(name)
        except (KeyError, ValueError):  # ValueError: an adaptor of a step that there is not
            left_over.append(name)
            continue
        if sources.setdefault(ours, name) != name:  # `our_name` takes any number for a prior's last layer
            left_over.append(name)
    if left_over:
        raise UnsupportedError(f"tensors that HPCM does not have: {listed(left_over)}", advice=_ADVICE)
    return "HPCM-Large" if _LARGE_ONLY in tensors else "HPCM-Base", sources


def refuse_others(names: Any) -> None:
    """Raise UnsupportedError, saying why, for the names of a network that is known and not ours to run."""
    names = list(names)
    with_rwkv = [name for name in names if _RWKV.search(name)]
    hpcm = any(name.startswith("y_spatial_prior_") for name in names)
    if with_rwkv and hpcm:
        raise UnsupportedError(
            f"an HPCM network with RWKV blocks of another program ({listed(with_rwkv)}): its kernels compute another Bi-WKV than the "
            "formula, and weights that were trained with them would not fit here",
            advice="train such a network with `hpcm train run --model phase2`",
        )
    if with_rwkv:
        lalic = any(".att.omni_shift." in name for name in names)
        raise UnsupportedError(
            f"{'a checkpoint of LALIC' if lalic else 'a checkpoint of another RWKV network'} ({listed(with_rwkv)}): its transforms and its "
            "context model are not HPCM's, and its kernels compute another Bi-WKV than the formula",
            advice=_ADVICE,
        )
    if hpcm and not any(name.startswith("attn_s") for name in names):
        raise UnsupportedError(
            "HPCM_Phi_Context, or another HPCM without attention, which we do not have", advice=_ADVICE
        )
    if not hpcm:
        raise UnsupportedError(f"not a checkpoint of HPCM; it has {listed(names)}", advice=_ADVICE)


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


def _gains_outside(kind: str, sources: dict[str, str], expected: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The adaptors' gains of a published HPCM-Large, which keeps them outside of its state, at 1; none where the file has them."""
    gains = [name for name in expected if _GAINS.fullmatch(name)]
    if kind != "HPCM-Large" or any(name in sources for name in gains):
        return {}
    return {name: torch.ones(expected[name]) for name in gains}


def _fitting(
    tensors: dict[str, Tensor], sources: dict[str, str], expected: dict[str, torch.Size], kind: str
) -> dict[str, Tensor]:
    """The weights by our names, in our shapes.

    sources: the tensors' names by ours. expected: shapes by our names.
    Raises UnsupportedError unless they are those of the model, all of them, FileError unless they are finite.
    """
    missing = sorted(expected.keys() - sources.keys())
    left_over = sorted(sources[name] for name in sources.keys() - expected.keys())
    for names, what in ((missing, "missing (by our names)"), (left_over, "left over")):
        if names:
            raise UnsupportedError(f"almost {kind}, but {what}: {listed(names)}", advice=_ADVICE)
    fitting = {}
    for name, shape in expected.items():
        value, source = tensors[sources[name]], listed([sources[name]])
        if value.dtype not in _TYPES:
            types = ", ".join(map(str, _TYPES))
            raise UnsupportedError(f"{source} is of {value.dtype}; weights are of {types}", advice=_ADVICE)
        # Ours have no axes of length 1 around the channels of gains and distributions.
        if [side for side in value.shape if side != 1] != [side for side in shape if side != 1]:
            reason = f"{source} is {tuple(value.shape)}, not {tuple(shape)} as in {kind}"
            raise UnsupportedError(reason, advice=_ADVICE)
        if not value.float().isfinite().all():  # as the model takes it
            raise FileError(f"{source} is not finite in float32", advice=AGAIN)
        fitting[name] = value.detach().reshape(shape)
    return fitting
