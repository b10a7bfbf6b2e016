"""Weights as safetensors: verify, load and save them.

A checkpoint holds the network's tensors and the range coder's tables; its metadata the ModelConfig as JSON and a record
of the training. Its identity, which every bitstream names, is the first 8 bytes of a SHA-256 over the tensors' names,
types, shapes and bytes: any change to any weight or table makes another model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from hpcm_codec.engines.exact.network import ExactNetwork
from hpcm_codec.engines.exact.tables import IntegerTables
from hpcm_codec.entropy.distributions import PRECISION_BITS, SymbolTables, build_tables
from hpcm_codec.errors import FileError, UnsupportedError
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.system.files import write_atomically
from hpcm_codec.weights.packing import pack_all, unpack_all
from hpcm_codec.weights.registry import DEFAULT_MODEL, find_checkpoint, identity_of_parts, opened

FORMAT = "hpcm-checkpoint-1"
PACKED_FORMAT = "hpcm-checkpoint-2"  # with matrices as `packing` stores them
_TABLE_PREFIX = "tables."
_FRACTION_PREFIX = "exact.fractions."
_EXACT_TABLE_PREFIX = "exact.tables."
_NOT_WEIGHTS = (_TABLE_PREFIX, _FRACTION_PREFIX, _EXACT_TABLE_PREFIX)


@dataclass(frozen=True)
class ExactData:
    """fractions: the units of every activation (see `exact.layers`), int8 each; tables: the stored functions."""

    fractions: dict[str, Tensor]
    tables: IntegerTables

    def tensors(self) -> dict[str, Tensor]:
        """As a checkpoint holds them."""
        stored = {_FRACTION_PREFIX + name: value for name, value in self.fractions.items()}
        return {**stored, **{_EXACT_TABLE_PREFIX + name: value for name, value in vars(self.tables).items()}}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> ExactData | None:
        """Out of a checkpoint's tensors; None where there is nothing, KeyError where a table is missing."""
        fractions = _with_prefix(tensors, _FRACTION_PREFIX)
        stored = _with_prefix(tensors, _EXACT_TABLE_PREFIX)
        if not fractions and not stored:
            return None
        return cls(fractions, IntegerTables(*(stored[field.name] for field in fields(IntegerTables))))


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: what a Codec needs.

    identity: 8 bytes; training: the record its trainer left; exact: what the exact profile needs, None without one.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    tables: SymbolTables
    identity: bytes
    training: dict[str, Any]
    exact: ExactData | None = None

    def build_model(self) -> HPCM:
        """The network with these weights, in evaluation mode, float32, on the CPU."""
        model = HPCM(self.config, initialise=False)  # 0.15 s less than drawing 14 million numbers that nobody looks at
        model.load_state_dict({name: value.float() for name, value in self.weights.items()}, assign=True)
        return model.eval().requires_grad_(False)

    def build_exact(self, model: HPCM) -> ExactNetwork | None:
        """The integer layers of the model that `build_model` gave, on its device; None without an exact profile."""
        if self.exact is None:
            return None
        if any(value.dtype != torch.float16 for value in self.weights.values()):
            raise UnsupportedError(
                "the exact profile's integers are made of float16 weights", advice="export it again with --exact"
            )
        return ExactNetwork(model, self.exact.fractions, self.exact.tables)


def identity_of(tensors: dict[str, Tensor]) -> bytes:
    """First 8 bytes of SHA-256 over names, types, shapes and bytes, in the order of the names."""
    plain = ((name, tensors[name].detach().cpu()) for name in sorted(tensors))
    return identity_of_parts(
        (name, str(tensor.dtype), tuple(tensor.shape), tensor.flatten().contiguous().view(torch.uint8).numpy().data)
        for name, tensor in plain
    )


def save_checkpoint(
    path: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    training: dict[str, Any],
    tables: SymbolTables | None = None,
    exact: ExactData | None = None,
    *,
    packed_bits: int | None = None,
) -> bytes:
    """Write weights, tables (None: newly built) and the exact profile to `path`, moved into place; returns the identity.

    packed_bits: 9 to 12: matrices with so many bits for a weight, everything else float16 (see `packing`).
    """
    tables = tables or build_tables()
    # A copy in plain row-major order: what was trained channels_last has other strides.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in weights.items()
    }
    metadata = {"format": FORMAT, "config": config.to_json(), "training": json.dumps(training)}
    if packed_bits is not None:
        tensors, shapes = pack_all(tensors, packed_bits)
        metadata |= {"format": PACKED_FORMAT, "packed": json.dumps({"bits": packed_bits, "shapes": shapes})}
    for field, value in (("cumulative", tables.packed()), ("sizes", tables.sizes), ("offsets", tables.offsets)):
        tensors[_TABLE_PREFIX + field] = value
    if exact is not None:
        tensors |= exact.tensors()
    write_atomically(path, save(tensors, metadata), overwrite=True)
    return identity_of(tensors)


def export_checkpoint(
    source: str,
    target: Path,
    dtype: torch.dtype = torch.float16,
    calibration: Sequence[Tensor] | None = None,
    *,
    packed_bits: int | None = None,
) -> bytes:
    """Copy a checkpoint with its weights rounded to `dtype`, for shipping; returns the new identity.

    The model then runs on the rounded values everywhere, so encoder and decoder still agree.

    packed_bits: 9 to 12: matrices are rounded to so many bits and stored so (see `packing`), everything else as float16.
    calibration: pictures (1×3×H×W in [0, 1], H and W multiples of 64) to find the units of the exact profile with; the checkpoint then
                 has one, and its weights are float16. None leaves the exact profile out.
    Raises UnsupportedError when weights do not fit `dtype`, or the exact profile does not cover the model.
    """
    from hpcm_codec.engines.exact.export import calibrate
    from hpcm_codec.engines.exact.tables import build_tables as build_integer_tables

    checkpoint = load_checkpoint(source)
    if calibration is not None and dtype != torch.float16:
        raise UnsupportedError("the exact profile's integers are made of float16 weights")
    weights = {name: value.to(dtype) for name, value in checkpoint.weights.items()}
    if not all(value.isfinite().all() for value in weights.values()):
        raise UnsupportedError(f"{source}: some weights do not fit {dtype}", advice="export with a wider type")
    if packed_bits is not None:
        weights = unpack_all(*pack_all(checkpoint.weights, packed_bits), packed_bits)
    exact = None
    if calibration is not None:
        rounded = replace(checkpoint, weights=weights, exact=None)
        exact = ExactData(calibrate(rounded.build_model(), calibration), build_integer_tables())
        replace(rounded, exact=exact).build_exact(rounded.build_model())  # whether it can be evaluated is told now
    record = (checkpoint.training, checkpoint.tables, exact)
    return save_checkpoint(target, checkpoint.config, weights, *record, packed_bits=packed_bits)


def verify_checkpoint(checkpoint: Checkpoint, name: str) -> None:
    """Raise FileError, naming the checkpoint, unless its weights are finite and fit, and its tables are whole."""
    try:
        checkpoint.build_model()
    except RuntimeError as error:
        raise FileError(f"the weights do not fit the configuration: {error}", file=name) from error
    broken = [key for key, value in checkpoint.weights.items() if not value.isfinite().all()]
    if broken:
        raise FileError(f"weights that are not finite: {', '.join(broken)}", file=name)
    tables = checkpoint.tables
    for row, size in zip(tables.cumulative.long(), tables.sizes.tolist(), strict=True):
        if row[0] != 0 or row[size - 1] != 1 << PRECISION_BITS or row[:size].diff().min() < 1:
            raise FileError("the range coder's tables are damaged", file=name, advice="fetch the checkpoint again")


def load_checkpoint(name_or_path: str = DEFAULT_MODEL) -> Checkpoint:
    """Load and check a checkpoint; raises FileError for a damaged file, UnsupportedError for an unknown format."""
    path = find_checkpoint(name_or_path)
    with opened(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if metadata.get("format") not in (FORMAT, PACKED_FORMAT):
        known = f"{FORMAT!r} or {PACKED_FORMAT!r}"
        raise UnsupportedError(f"{path}: checkpoint format {metadata.get('format')!r} is not {known}")
    config = ModelConfig.from_json(metadata["config"])
    try:
        stored = (tensors[_TABLE_PREFIX + field] for field in ("cumulative", "sizes", "offsets"))
        tables = SymbolTables.from_packed(*stored)
        exact = ExactData.from_tensors(tensors)
    except KeyError as error:
        raise FileError(f"{path}: the checkpoint lacks {error}; fetch it again") from error
    except (ValueError, RuntimeError) as error:
        raise FileError(f"{path}: the range coder's tables are damaged ({error}); fetch it again") from error
    stored_weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_NOT_WEIGHTS)}
    try:
        weights = stored_weights
        if metadata["format"] == PACKED_FORMAT:
            packing = json.loads(metadata["packed"])
            weights = unpack_all(stored_weights, packing["shapes"], packing["bits"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise FileError(f"{path}: the packed weights are damaged ({error}); fetch it again") from error
    training = json.loads(metadata.get("training", "{}"))
    return Checkpoint(config, weights, tables, identity_of(tensors), training, exact)
