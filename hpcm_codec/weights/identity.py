"""Identities of checkpoints: 8 bytes by which a bitstream names the weights that it was made with.

An identity is a digest of the tensors' names, types, shapes and bytes. Renaming a module's attribute renames a tensor. This, or another
type, therefore gives every checkpoint a new identity, and no existing file decodes any more. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, deserialize

from hpcm_codec.errors import FileError

IDENTITY_BYTES = 8
AGAIN = "fetch it again"  # advice about a damaged checkpoint
FRACTION_PREFIX = "exact.fractions."  # of the names of tensors: the units of the exact profile's activations
# safetensors' names of types → torch's, which are part of identities
TYPES = {
    "F64": "torch.float64",
    "F32": "torch.float32",
    "F16": "torch.float16",
    "BF16": "torch.bfloat16",
    "I64": "torch.int64",
    "I32": "torch.int32",
    "I16": "torch.int16",
    "I8": "torch.int8",
    "U8": "torch.uint8",
    "BOOL": "torch.bool",
}


def identity_of_parts(parts: Iterable[tuple[str, str, tuple[int, ...], bytes | bytearray | memoryview]]) -> bytes:
    """First 8 bytes of SHA-256 over names, types (as torch writes them), shapes and bytes of tensors, in the order of the names."""
    digest = hashlib.sha256()
    for name, dtype, shape, content in parts:
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        digest.update(content)
    return digest.digest()[:IDENTITY_BYTES]


def identity_of_file(path: str | Path) -> bytes:
    """The identity of a checkpoint's file, as `load_checkpoint` finds it; raises FileError when it is damaged."""
    try:
        tensors = sorted(deserialize(Path(path).read_bytes()), key=lambda named: named[0])
        return identity_of_parts(
            (name, TYPES[tensor["dtype"]], tuple(tensor["shape"]), tensor["data"]) for name, tensor in tensors
        )
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise damaged(path, error) from error


def damaged(path: str | Path, error: Exception) -> FileError:
    """The error for a file that cannot be read as a checkpoint."""
    return FileError(f"damaged or not a checkpoint ({str(error)[:200]})", file=path, advice=AGAIN)
