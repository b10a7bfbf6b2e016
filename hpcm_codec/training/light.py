"""Weights for moving between machines: the averaged ones in bfloat16, in one file or in pieces of a bounded size.

Pieces are the file's bytes cut in order, NAME.1of3, NAME.2of3, NAME.3of3 (`cat` joins them too). The file's training record
holds the identity of its tensors, so that pieces of different exports are detected.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch

from hpcm_codec.errors import FileError
from hpcm_codec.system.files import write_atomically
from hpcm_codec.weights.checkpoints import Checkpoint, load_checkpoint, save_checkpoint

_PIECE = re.compile(r"\.(\d+)of(\d+)$")
_RECORD = "light_identity"


def weights_of(name: str) -> str:
    """The weights of a run's folder, of a file or of a checkpoint given by name."""
    return str(Path(name) / "weights.safetensors") if Path(name).is_dir() else name


def pieces_of(path: Path) -> list[Path]:
    """The pieces there are of a file, in order; path: the whole file's name or that of any piece."""
    whole = _PIECE.sub("", path.name)
    named = [(piece, _PIECE.search(piece.name)) for piece in path.parent.glob("*.*of*")]
    found = {int(match[1]): piece for piece, match in named if match and _PIECE.sub("", piece.name) == whole}
    return [found[number] for number in sorted(found)]


def export_light(source: str, target: Path, piece_bytes: int | None = None) -> list[Path]:
    """Write the weights of a run or checkpoint in bfloat16; returns the files written.

    piece_bytes: the largest size of a piece; None, or a file that fits, gives one file `target`. Earlier pieces of `target` are removed.
    """
    checkpoint = load_checkpoint(weights_of(source))
    weights = {name: value.to(torch.bfloat16) for name, value in checkpoint.weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "light.safetensors"
        identity = save_checkpoint(path, checkpoint.config, weights, checkpoint.training, checkpoint.tables)
        record = {**checkpoint.training, _RECORD: identity.hex()}
        save_checkpoint(path, checkpoint.config, weights, record, checkpoint.tables)
        data = path.read_bytes()
    for earlier in pieces_of(target):
        earlier.unlink()
    if piece_bytes is None or len(data) <= piece_bytes:
        write_atomically(target, data, overwrite=True)
        return [target]
    count = -(-len(data) // piece_bytes)
    pieces = [target.with_name(f"{target.name}.{number + 1}of{count}") for number in range(count)]
    for number, piece in enumerate(pieces):
        write_atomically(piece, data[number * piece_bytes : (number + 1) * piece_bytes], overwrite=True)
    return pieces


def load_weights(name: str) -> Checkpoint:
    """The checkpoint of a run's folder, file or name; joined from its pieces where there is no such file but pieces of it.

    Raises FileError when pieces are missing, damaged or of different exports.
    """
    path = Path(weights_of(name))
    pieces = pieces_of(path)
    if not pieces or (path.exists() and not _PIECE.search(path.name)):
        return load_checkpoint(str(path))
    counts = {match[2] for match in (_PIECE.search(piece.name) for piece in pieces) if match}
    whole = path.with_name(_PIECE.sub("", path.name))
    if len(counts) != 1 or len(pieces) != int(counts.pop()):
        raise FileError(f"of its pieces only {', '.join(p.name for p in pieces)} are here", file=whole)
    with tempfile.TemporaryDirectory() as folder:
        joined = Path(folder) / "joined.safetensors"
        joined.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
        try:
            checkpoint = load_checkpoint(str(joined))
        except FileError as error:
            raise FileError("its pieces do not make a checkpoint", file=whole, advice="fetch them again") from error
    if checkpoint.training.get(_RECORD) != checkpoint.identity.hex():
        raise FileError("its pieces do not belong together", file=whole, advice="fetch them again")
    return checkpoint
