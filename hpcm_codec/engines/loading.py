"""From a checkpoint of tensors to what computes with it."""

from __future__ import annotations

import torch

from hpcm_codec.engines.exact.network import ExactNetwork
from hpcm_codec.engines.exact.weights import Weights
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.ops.integer_tables import IntegerTables
from hpcm_codec.weights.checkpoints import Checkpoint


def exact_network(checkpoint: Checkpoint) -> ExactNetwork | None:
    """The integer layers of a checkpoint, to be moved to a device with `to`; None without an exact profile.

    Raises UnsupportedError for models and weights that it does not cover.
    """
    if checkpoint.exact is None:
        return None
    if any(value.dtype != torch.float16 for value in checkpoint.weights.values()):
        raise UnsupportedError(
            "the exact profile's integers are made of float16 weights", advice="export it again with --exact"
        )
    weights = Weights({name: value.numpy() for name, value in checkpoint.weights.items()})
    fractions = {name: value.numpy() for name, value in checkpoint.exact.fractions.items()}
    tables = IntegerTables(*(table.numpy() for table in vars(checkpoint.exact.tables).values()))
    return ExactNetwork(checkpoint.config, weights, fractions, tables, compiled=False)
