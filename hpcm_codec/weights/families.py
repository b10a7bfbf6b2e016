"""Families: several models of one network, each with one rate, in one file, from the lowest rate to the highest.

A family's file is a safetensors file of format "hpcm-family-1". Its tensors `members.0`, `members.1` …, of type U8, are the files of whole
checkpoints, byte for byte, lowest rate first. Its metadata's `members` is a list in JSON with the identity of each, and the bits per pixel
that the order was found by. So the header alone says which models there are, and a model is read without the others.

The qualities 0 to 100 are spread over the members: member i of n has the quality 100·i / (n − 1), in half steps, and a quality between
two chooses the nearer.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from hpcm_codec.constants import LARGEST_QUALITY_CODE
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.system.files import file_error, write_atomically
from hpcm_codec.weights.identity import IDENTITY_BYTES, damaged, identity_of_file

FAMILY_FORMAT = "hpcm-family-1"
MOST_MEMBERS = LARGEST_QUALITY_CODE + 1  # each has a quality of its own
_LARGEST_HEADER = 2**20
_LENGTH_BYTES = 8  # safetensors: the header's length, little-endian, before it
_MEMBER = "members."
_ALIGNMENT = 8


@dataclass(frozen=True)
class Member:
    """identity: 8 bytes; rate: in bits per pixel, as estimated on one picture; start, size: of its file's bytes in the family's file."""

    identity: bytes
    rate: float
    start: int
    size: int


@dataclass(frozen=True)
class Family:
    """members: two or more, the lowest rate first. Members are called by their number in it, from 0."""

    path: Path
    members: tuple[Member, ...]

    @property
    def identity(self) -> bytes:
        """Of the family: the first 8 bytes of the SHA-256 over its members' identities. Files name the member's instead."""
        return hashlib.sha256(b"".join(member.identity for member in self.members)).digest()[:IDENTITY_BYTES]

    @property
    def codes(self) -> tuple[int, ...]:
        """The quality code of each member, rising from 0 to 200."""
        last = len(self.members) - 1
        return tuple(round(LARGEST_QUALITY_CODE * number / last) for number in range(len(self.members)))

    def number_at(self, code: int) -> int:
        """Which member a quality code (0 .. 200) chooses: the nearest, the higher of two that are equally near."""
        codes = self.codes
        return codes.index(min(codes, key=lambda own: (abs(own - code), -own)))

    def number_of(self, identity: bytes) -> int | None:
        """Which member has that identity; None if none has."""
        return next((number for number, member in enumerate(self.members) if member.identity == identity), None)

    def content(self, number: int) -> bytes:
        """A member's bytes, not checked; raises FileError where they cannot be read."""
        member = self.members[number]
        return self._read(member.start, member.size)

    def header(self, number: int) -> dict[str, Any]:
        """The header of a member's file: its tensors by name, and `__metadata__`. Raises FileError for a damaged one."""
        member = self.members[number]
        length = int.from_bytes(self._read(member.start, _LENGTH_BYTES), "little")
        if length > member.size - _LENGTH_BYTES:
            raise damaged(self.path, ValueError(f"member {number} has no header"))
        try:
            header = json.loads(self._read(member.start + _LENGTH_BYTES, length))
        except (ValueError, RecursionError) as error:
            raise damaged(self.path, error) from error
        if not isinstance(header, dict):
            raise damaged(self.path, ValueError(f"member {number} has no header"))
        return header

    def _read(self, start: int, size: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                content = file.read(size)
        except OSError as error:
            raise file_error(self.path, error) from error
        if len(content) != size:
            raise damaged(self.path, ValueError("it ends too early"))
        return content


def read_family(path: Path) -> Family | None:
    """The family in a file, of which only the header is read; None for anything else. Raises FileError for a damaged family."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            content = file.read(min(length, _LARGEST_HEADER))
    except OSError:
        return None  # whoever reads it as a checkpoint says why
    if FAMILY_FORMAT.encode() not in content:
        return None
    try:
        header = json.loads(content)
        metadata = header.pop("__metadata__")
        if metadata["format"] != FAMILY_FORMAT:
            return None
        return Family(path, _members(header, json.loads(metadata["members"]), _LENGTH_BYTES + length, size))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, error) from error


def _members(tensors: dict[str, Any], described: list[dict[str, Any]], start: int, size: int) -> tuple[Member, ...]:
    """The members of a header, which begin at `start` in a file of `size` bytes; raises ValueError, KeyError or TypeError."""
    found = []
    for number, entry in enumerate(described):
        tensor = tensors[f"{_MEMBER}{number}"]
        first, end = tensor["data_offsets"]
        if tensor["dtype"] != "U8" or tensor["shape"] != [end - first] or not isinstance(first, int):
            raise ValueError(f"member {number} is not in bytes")
        found.append(Member(bytes.fromhex(entry["identity"]), float(entry["bpp"]), start + first, end - first))
    end = start
    for member in sorted(found, key=lambda member: member.start):
        if member.start != end or member.size < _LENGTH_BYTES:
            raise ValueError("its members do not lie one after the other")
        end += member.size
    if end != size or len(tensors) != len(found):
        raise ValueError("it ends too early, or has more than its members")
    if not 2 <= len(found) <= MOST_MEMBERS or any(len(member.identity) != IDENTITY_BYTES for member in found):
        raise ValueError("its members have no identities")
    if len({member.identity for member in found}) != len(found):
        raise ValueError("it holds a model twice")
    if not all(math.isfinite(b.rate) and a.rate < b.rate for a, b in pairwise(found)):
        raise ValueError("its members are not in the order of their rates")
    return tuple(found)


def write_family(path: Path, members: Sequence[tuple[Path, bytes, float]]) -> Family:
    """Write a family of checkpoints' files, from the lowest rate to the highest, moved into place, over an older file; returns it.

    members: file, identity and rate in bits per pixel of each, rates rising. Files are copied one after the other, and never held.
    Raises ValueError for what is no family, FileError for what cannot be read or written.
    """
    described = [{"identity": identity.hex(), "bpp": rate} for _, identity, rate in members]
    files = [file for file, _, _ in members]
    header: dict[str, Any] = {"__metadata__": {"format": FAMILY_FORMAT, "members": json.dumps(described)}}
    end = 0
    for number, size in enumerate(file.stat().st_size for file in files):
        header[f"{_MEMBER}{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % _ALIGNMENT)
    tensors = {name: tensor for name, tensor in header.items() if name.startswith(_MEMBER)}
    start = _LENGTH_BYTES + len(content)
    family = Family(path, _members(tensors, described, start, start + end))  # before a file is written

    def write(target: BinaryIO) -> None:
        target.write(len(content).to_bytes(_LENGTH_BYTES, "little") + content)
        for file in files:
            with file.open("rb") as source:
                shutil.copyfileobj(source, target)

    write_atomically(path, write, overwrite=True)
    return family


@cache
def kept_identities(path: Path) -> tuple[bytes, ...]:
    """The identities of the models in a checkpoint's or a family's file, computed once. Raises FileError when it is damaged.

    A family's are those that its header says; whoever reads a member checks that it has its own.
    """
    family = read_family(path)
    return (identity_of_file(path),) if family is None else tuple(member.identity for member in family.members)


def wants_one(family: Family) -> UnsupportedError:
    """The error for a family where one model is wanted."""
    return UnsupportedError(
        f"a family of {len(family.members)} models, where one is wanted",
        file=family.path,
        advice="take one out with `hpcm checkpoints export FAMILY -q QUALITY -o ONE.safetensors`",
    )
