"""Whether a checkpoint is sound: its weights, its tables, and the integers that its exact profile makes of them."""

from __future__ import annotations

from hpcm_codec.engines.loading import exact_network
from hpcm_codec.errors import HpcmError
from hpcm_codec.weights.checkpoints import Checkpoint, verify_checkpoint


def verify(checkpoint: Checkpoint, name: str) -> None:
    """Raise FileError or UnsupportedError, naming the checkpoint, unless it passes `verify_checkpoint` and its integers can be made."""
    verify_checkpoint(checkpoint, name)
    if checkpoint.exact is None:
        return
    try:
        exact_network(checkpoint.as_stored(), compiled=False)
    except HpcmError as error:
        error.file = name  # what it is called here; the network was made of a copy in memory
        raise
