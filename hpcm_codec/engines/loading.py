"""From a checkpoint to what computes with it."""

from __future__ import annotations

import torch

from hpcm_codec.engines.exact.network import ExactNetwork
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.weights.checkpoints import Checkpoint


def exact_network(checkpoint: Checkpoint, model: HPCM) -> ExactNetwork | None:
    """The integer layers of the model that the checkpoint's `build_model` gave; None without an exact profile.

    Raises UnsupportedError for models and weights that it does not cover.
    """
    if checkpoint.exact is None:
        return None
    if any(value.dtype != torch.float16 for value in checkpoint.weights.values()):
        raise UnsupportedError(
            "the exact profile's integers are made of float16 weights", advice="export it again with --exact"
        )
    return ExactNetwork(model, checkpoint.exact.fractions, checkpoint.exact.tables)
