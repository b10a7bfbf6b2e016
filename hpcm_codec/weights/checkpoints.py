"""Weights as safetensors: verify, load and save them.

A checkpoint holds the network's tensors and the rANS coder's tables; its metadata the ModelConfig as JSON and a record
of the training. Its identity, which every bitstream names, is the first 8 bytes of a SHA-256 over the tensors' names,
types, shapes and bytes: any change to any weight or table makes another model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from hpcm_codec.constants import DEFAULT_MODEL
from hpcm_codec.entropy.distributions import SymbolTables, build_tables
from hpcm_codec.entropy.sigmas import PRECISION_BITS
from hpcm_codec.errors import FileError, listed
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.ops.integer_tables import StoredFunctions
from hpcm_codec.system.files import write_atomically
from hpcm_codec.weights.families import Family
from hpcm_codec.weights.identity import AGAIN, FRACTION_PREFIX, identity_of_parts
from hpcm_codec.weights.packing import pack_all, unpack_all
from hpcm_codec.weights.stored import (
    EXACT_TABLE_PREFIX,
    FORMAT,
    NOT_WEIGHTS,
    PACKED_FORMAT,
    TABLE_PREFIX,
    StoredCheckpoint,
    read_checkpoint,
    read_member,
    read_models,
)


@dataclass(frozen=True)
class ExactData:
    """fractions: the units of every activation (see `engines.exact.layers`), int8 each; tables: the stored functions."""

    fractions: dict[str, Tensor]
    tables: StoredFunctions

    def tensors(self) -> dict[str, Tensor]:
        """As a checkpoint holds them."""
        stored = {FRACTION_PREFIX + name: value for name, value in self.fractions.items()}
        return {**stored, **{EXACT_TABLE_PREFIX + name: value for name, value in self.tables.tables().items()}}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> ExactData | None:
        """From a checkpoint's tensors; None without an exact profile. Raises KeyError where a table is missing."""
        fractions = _with_prefix(tensors, FRACTION_PREFIX)
        stored = _with_prefix(tensors, EXACT_TABLE_PREFIX)
        if not fractions and not stored:
            return None
        return cls(fractions, StoredFunctions.of(stored))


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: all that a Codec needs.

    identity: 8 bytes; training: the record of its training; exact: data of the exact profile, None without one.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    tables: SymbolTables
    identity: bytes
    training: dict[str, Any]
    exact: ExactData | None = None

    def as_stored(self) -> StoredCheckpoint:
        """As what engines are made of."""
        tables = {TABLE_PREFIX + name: value for name, value in vars(self.tables).items()}
        tensors = {**self.weights, **tables, **({} if self.exact is None else self.exact.tensors())}
        arrays = {n: t.detach().cpu().contiguous().numpy() for n, t in tensors.items() if t.dtype != torch.bfloat16}
        halves = {n: t.detach().cpu() for n, t in tensors.items() if t.dtype == torch.bfloat16}
        bytes_of = {
            n: (bytearray(t.contiguous().view(torch.uint8).numpy().tobytes()), tuple(t.shape))
            for n, t in halves.items()
        }
        metadata = {"format": FORMAT, "config": self.config.to_json(), "training": json.dumps(self.training)}
        return StoredCheckpoint(Path("a checkpoint in memory"), self.identity, metadata, arrays, bytes_of)

    def build_model(self) -> HPCM:
        """The network with these weights, in evaluation mode, float32, on the CPU."""
        model = HPCM(self.config, initialise=False)  # saves 0.15 s: 14 million random numbers would be overwritten
        model.load_state_dict({name: value.float() for name, value in self.weights.items()}, assign=True)
        return model.eval().requires_grad_(False)


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
    # A copy in row-major order: weights trained in channels_last have other strides.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in weights.items()
    }
    metadata = {"format": FORMAT, "config": config.to_json(), "training": json.dumps(training)}
    if packed_bits is not None:
        tensors, shapes = pack_all(tensors, packed_bits)
        metadata |= {"format": PACKED_FORMAT, "packed": json.dumps({"bits": packed_bits, "shapes": shapes})}
    for field, value in (("cumulative", tables.packed()), ("sizes", tables.sizes), ("offsets", tables.offsets)):
        tensors[TABLE_PREFIX + field] = value
    if exact is not None:
        tensors |= exact.tensors()
    write_atomically(path, save(tensors, metadata), overwrite=True)
    return identity_of(tensors)


def verify_checkpoint(checkpoint: Checkpoint, name: str) -> None:
    """Raise FileError, naming the checkpoint, unless its weights are finite and have the right shapes, and its tables are complete."""
    try:
        checkpoint.build_model()
    except RuntimeError as error:
        reason = f"the weights do not fit the configuration: {str(error)[:300]}"
        raise FileError(reason, file=name, advice=AGAIN) from error
    no_reals = [key for key, value in checkpoint.weights.items() if not value.is_floating_point()]
    for problem, broken in (("no floating-point numbers", no_reals), ("not finite", not_finite(checkpoint.weights))):
        if broken:
            raise FileError(f"weights that are {problem}: {listed(broken)}", file=name, advice=AGAIN)
    tables = checkpoint.tables
    for row, size in zip(tables.cumulative.long(), tables.sizes.tolist(), strict=True):
        if row[0] != 0 or row[size - 1] != 1 << PRECISION_BITS or row[:size].diff().min() < 1:
            raise FileError("the rANS coder's tables are damaged", file=name, advice=AGAIN)


def not_finite(weights: dict[str, Tensor]) -> list[str]:
    """The names of tensors with infinities or NaN."""
    return [name for name, value in weights.items() if not value.isfinite().all()]


def load_checkpoint(name_or_path: str = DEFAULT_MODEL) -> Checkpoint:
    """Load and check a checkpoint; raises FileError for a damaged file, UnsupportedError for an unknown format."""
    return with_tensors(read_checkpoint(name_or_path))


def each_checkpoint(name_or_path: str) -> Iterator[Checkpoint]:
    """A checkpoint, or every member of a family from the lowest rate on, one at a time; raises as `load_checkpoint`."""
    found = read_models(name_or_path)
    if isinstance(found, Family):
        for number in range(len(found.members)):
            yield with_tensors(read_member(found, number))
    else:
        yield with_tensors(found)


def with_tensors(stored: StoredCheckpoint) -> Checkpoint:
    """A stored checkpoint as tensors, its weights unpacked; raises FileError for a damaged one."""
    path = stored.path
    tensors = {name: torch.from_numpy(array) for name, array in stored.arrays.items()}
    tensors |= {
        name: torch.frombuffer(data, dtype=torch.bfloat16).reshape(shape)
        for name, (data, shape) in stored.bfloat16.items()
    }
    try:
        tables = SymbolTables.from_packed(*(torch.from_numpy(table) for table in vars(stored.tables).values()))
        exact = ExactData.from_tensors(tensors)
    except KeyError as error:
        raise FileError(f"the checkpoint lacks the table {error}", file=path, advice=AGAIN) from error
    except (ValueError, RuntimeError) as error:
        raise FileError(f"its tables are damaged ({str(error)[:100]})", file=path, advice=AGAIN) from error
    stored_weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(NOT_WEIGHTS)}
    try:
        weights = stored_weights
        if stored.metadata["format"] == PACKED_FORMAT:
            bits, shapes = stored.packing
            weights = unpack_all(stored_weights, {name: list(shape) for name, shape in shapes.items()}, bits)
    except (KeyError, ValueError, RuntimeError) as error:
        raise FileError(f"the packed weights are damaged ({str(error)[:100]})", file=path, advice=AGAIN) from error
    return Checkpoint(stored.config, weights, tables, stored.identity, stored.training, exact)
