"""From a checkpoint to the engines that compute with it."""

from __future__ import annotations

import torch

from hpcm_codec.engines.devices import device_of
from hpcm_codec.engines.exact.network import ExactNetwork
from hpcm_codec.engines.interface import Engine
from hpcm_codec.engines.torch_engine import ExactEngine, FloatEngine
from hpcm_codec.entropy.rans_encoder import CoderTables
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.system.threads import heed_forks
from hpcm_codec.weights.checkpoints import Checkpoint


def load_engines(checkpoint: Checkpoint, device: str) -> dict[str, Engine]:
    """The engines of a checkpoint by their profiles: "exact", where it has one, and "float".

    device: "cpu", "cuda", "cuda:N", or "auto" for CUDA where there is one. Raises UsageError for a device that does not exist,
    UnsupportedError for weights that the exact profile does not cover.
    """
    heed_forks()
    place = device_of(device)
    model = checkpoint.build_model()
    network = exact_network(checkpoint, model)
    tables = CoderTables(checkpoint.tables)
    model = model.to(place)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    engines: dict[str, Engine] = {"float": FloatEngine(model, tables, place)}
    if network is not None:
        engines["exact"] = ExactEngine(model, network.to(place), tables, place)
    return engines


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
