"""A checkpoint as its file holds it, in numpy arrays. The integer engine is built from it without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from hpcm_codec.constants import DEFAULT_MODEL
from hpcm_codec.entropy.sigmas import SIGMA_COUNT
from hpcm_codec.errors import FileError, UnsupportedError, printable
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.ops.integer_tables import StoredFunctions
from hpcm_codec.weights.families import Family, read_family, wants_one
from hpcm_codec.weights.identity import AGAIN, FRACTION_PREFIX, TYPES, damaged, identity_of_parts
from hpcm_codec.weights.registry import find_checkpoint

FORMAT = "hpcm-checkpoint-1"
PACKED_FORMAT = "hpcm-checkpoint-2"  # with matrices as `packing` stores them
TABLE_PREFIX = "tables."
EXACT_TABLE_PREFIX = "exact.tables."
NOT_WEIGHTS = (TABLE_PREFIX, FRACTION_PREFIX, EXACT_TABLE_PREFIX)
# by the beginnings of tensors' names, the longest first
_TYPES_OF_TABLES = {
    f"{EXACT_TABLE_PREFIX}thresholds": "int32",
    EXACT_TABLE_PREFIX: "int16",
    FRACTION_PREFIX: "int8",
    TABLE_PREFIX: "int32",
}
# safetensors' names of types → numpy's, which has no bfloat16
_ARRAYS: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True)
class StoredTables:
    """The rANS coder's tables: the rows of `cumulative` one after the other, or padded; see `entropy.distributions.SymbolTables`."""

    cumulative: NDArray[np.int32]
    sizes: NDArray[np.int32]
    offsets: NDArray[np.int32]


@dataclass(frozen=True)
class StoredCheckpoint:
    """identity: 8 bytes; arrays: tensors by name; bfloat16: bytes and shapes of the bfloat16 tensors, a type that numpy lacks."""

    path: Path
    identity: bytes
    metadata: Mapping[str, str]
    arrays: Mapping[str, NDArray[Any]]
    bfloat16: Mapping[str, tuple[bytearray, tuple[int, ...]]]

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.from_json(self.metadata["config"])

    @property
    def tables(self) -> StoredTables:
        """Raises FileError where one is missing or has not a row for each width."""
        try:
            found = StoredTables(*(self.arrays[TABLE_PREFIX + field.name] for field in fields(StoredTables)))
        except KeyError as error:
            raise FileError(f"the checkpoint lacks the table {error}", file=self.path, advice=AGAIN) from error
        if not found.sizes.shape == found.offsets.shape == (SIGMA_COUNT,):
            raise FileError("the rANS coder's tables are damaged", file=self.path, advice=AGAIN)
        return found

    @property
    def packing(self) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Bits and shapes of packed weights; 0 and no shapes if none are packed."""
        if "packed" not in self.metadata:
            return 0, {}
        return _packing(self.metadata["packed"])

    @property
    def training(self) -> dict[str, Any]:
        """The record of its training."""
        return _training(self.metadata)

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        return {name: value for name, value in self.arrays.items() if not name.startswith(NOT_WEIGHTS)}

    @property
    def fractions(self) -> dict[str, NDArray[np.int8]]:
        """The units of activations; none without an exact profile."""
        return {
            name.removeprefix(FRACTION_PREFIX): value
            for name, value in self.arrays.items()
            if name.startswith(FRACTION_PREFIX)
        }

    @property
    def stored_functions(self) -> StoredFunctions:
        """The stored functions of the exact profile; raises FileError where one is missing."""
        stored = {
            name.removeprefix(EXACT_TABLE_PREFIX): value
            for name, value in self.arrays.items()
            if name.startswith(EXACT_TABLE_PREFIX)
        }
        try:
            return StoredFunctions.of(stored)
        except KeyError as error:
            raise FileError(f"the checkpoint lacks the function {error}", file=self.path, advice=AGAIN) from error
        except ValueError as error:
            raise FileError(f"the checkpoint is damaged: {error}", file=self.path, advice=AGAIN) from error


def read_checkpoint(name_or_path: str = DEFAULT_MODEL) -> StoredCheckpoint:
    """A checkpoint's file; raises FileError for a damaged one, UnsupportedError for an unknown name or format, and for a family."""
    found = read_models(name_or_path)
    if isinstance(found, Family):
        raise wants_one(found)
    return found


def read_models(name_or_path: str = DEFAULT_MODEL) -> StoredCheckpoint | Family:
    """A checkpoint's file, or a family of which only the header is read; raises as `read_checkpoint`."""
    path = find_checkpoint(name_or_path)
    family = read_family(path)
    if family is not None:
        return family
    try:
        content = path.read_bytes()
    except OSError as error:
        raise damaged(path, error) from error
    return _parsed(content, path)


def read_member(family: Family, number: int) -> StoredCheckpoint:
    """A member of a family; raises FileError where it is damaged, or not the one that the family's header names."""
    found = _parsed(family.content(number), family.path)
    if found.identity != family.members[number].identity:
        raise damaged(family.path, ValueError(f"member {number} is not the one that the header names"))
    return found


def member_about(family: Family, number: int) -> tuple[ModelConfig, dict[str, Any]]:
    """Configuration and training record of a member, of which its header alone is read; raises FileError for a damaged one."""
    try:
        metadata = family.header(number)["__metadata__"]
        return ModelConfig.from_json(metadata["config"]), _training(metadata)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(family.path, error) from error
    except UnsupportedError as error:
        raise error.in_file(family.path) from error


def _parsed(content: bytes, path: Path) -> StoredCheckpoint:
    """The bytes of a checkpoint's file; raises as `read_checkpoint`."""
    try:
        tensors = sorted(deserialize(content), key=lambda named: named[0])
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
        identity = identity_of_parts(
            (name, TYPES[tensor["dtype"]], tuple(tensor["shape"]), tensor["data"]) for name, tensor in tensors
        )
        arrays = {
            name: np.frombuffer(tensor["data"], _ARRAYS[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in tensors
            if tensor["dtype"] != "BF16"
        }
        bfloat16 = {
            name: (tensor["data"], tuple(tensor["shape"])) for name, tensor in tensors if tensor["dtype"] == "BF16"
        }
    except (SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, error) from error
    if metadata.get("format") not in (FORMAT, PACKED_FORMAT):
        known = f"{FORMAT!r} or {PACKED_FORMAT!r}"
        raise UnsupportedError(
            f"checkpoint format {metadata.get('format')!r} is not {known}",
            file=path,
            advice="it is no checkpoint of this program, or one of a newer version",
        )
    _check_about(metadata, path)
    _check_types({name: str(array.dtype) for name, array in arrays.items()} | dict.fromkeys(bfloat16, "bfloat16"), path)
    return StoredCheckpoint(path, identity, metadata, arrays, bfloat16)


def _training(metadata: Mapping[str, str]) -> dict[str, Any]:
    record = json.loads(metadata.get("training", "{}"))
    if not isinstance(record, dict):
        raise ValueError("the record of its training is none")
    return record


def _packing(text: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    packed = json.loads(text)
    return int(packed["bits"]), {name: tuple(shape) for name, shape in packed["shapes"].items()}


def _check_about(metadata: Mapping[str, str], path: Path) -> None:
    """Raise FileError or UnsupportedError unless all that the metadata tells can be read. It is no part of the identity."""
    try:
        ModelConfig.from_json(metadata["config"])
        _training(metadata)
        if metadata["format"] == PACKED_FORMAT:
            _packing(metadata["packed"])
    except UnsupportedError as error:
        raise error.in_file(path) from error
    except KeyError as error:
        raise damaged(path, ValueError(f"its metadata lacks {error}")) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, error) from error


def _check_types(types: Mapping[str, str], path: Path) -> None:
    """Raise FileError where the coder's tables or the exact profile's data are not the integers that they have to be."""
    for name, found in types.items():
        needed = next((dtype for prefix, dtype in _TYPES_OF_TABLES.items() if name.startswith(prefix)), found)
        if found != needed:
            raise FileError(
                f"the checkpoint is damaged: {printable(name)[:100]} is {found}, not {needed}", file=path, advice=AGAIN
            )
