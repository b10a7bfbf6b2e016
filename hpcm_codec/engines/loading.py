"""From a checkpoint to the engines that compute with it. Torch is imported when an engine needs it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hpcm_codec.engines.exact.network import ExactNetwork, can_compile
from hpcm_codec.engines.exact.weights import Weights
from hpcm_codec.engines.integer import IntegerEngine
from hpcm_codec.engines.interface import Engine
from hpcm_codec.entropy.rans_encoder import CoderTables
from hpcm_codec.errors import FileError, HpcmError, UnsupportedError
from hpcm_codec.ops import build
from hpcm_codec.system.devices import device_of
from hpcm_codec.system.threads import heed_forks, import_torch
from hpcm_codec.weights.identity import AGAIN
from hpcm_codec.weights.stored import StoredCheckpoint

if TYPE_CHECKING:
    from hpcm_codec.model.hpcm import HPCM

EXACT_PIXELS = (
    "HPCM_EXACT_PIXELS"  # "1": a GPU too computes transforms in integers, and shows the pixels that every machine shows
)


def load_engines(checkpoint: StoredCheckpoint, device: str) -> Engines:
    """The engines of a checkpoint by their profiles: "exact", where it has one, and "float".

    device: "cpu", "cuda", "cuda:N", or "auto" for CUDA where there is one. Raises UsageError for a device that does not exist,
    UnsupportedError for weights that the exact profile does not cover.
    """
    heed_forks()
    return Engines(checkpoint, device_of(device))


class Engines(Mapping[str, Engine]):
    """A checkpoint's engines by profile; the one in floating point is made at its first use."""

    def __init__(self, checkpoint: StoredCheckpoint, device: str) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._made: dict[str, Engine] = {}
        self._tables = CoderTables(checkpoint.tables)
        if "exact" in self:
            self._made["exact"] = self._exact()

    def __getitem__(self, profile: str) -> Engine:
        if profile not in self._made:
            if profile != "float":
                raise KeyError(profile)
            self._made[profile] = self._float()
        return self._made[profile]

    def __contains__(self, profile: object) -> bool:
        return profile == "float" or (profile == "exact" and bool(self._checkpoint.fractions))

    def __iter__(self) -> Iterator[str]:
        return (profile for profile in ("exact", "float") if profile in self)

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def made(self) -> list[Engine]:
        """The engines that have been made."""
        return list(self._made.values())

    def _exact(self) -> Engine:
        compiled = self._device == "cpu" and can_compile(self._checkpoint.config) and build.use_compiled("integer")
        network = exact_network(self._checkpoint, compiled=compiled)
        if compiled and network.has_transforms:
            return IntegerEngine(network, self._tables)
        import_torch()
        import torch

        from hpcm_codec.engines.torch_engine import ExactEngine

        place = torch.device(self._device)
        if network.has_transforms and (place.type == "cpu" or os.environ.get(EXACT_PIXELS) == "1"):
            return IntegerEngine(network.to(place), self._tables)
        return ExactEngine(self._model, network if compiled else network.to(place), self._tables, place)

    def _float(self) -> Engine:
        import_torch()
        import torch

        from hpcm_codec.engines.torch_engine import FloatEngine

        return FloatEngine(self._model, self._tables, torch.device(self._device))

    @cached_property
    def _model(self) -> HPCM:
        """The network in floating point, on the device."""
        import torch

        from hpcm_codec.weights.checkpoints import with_tensors

        model = with_tensors(self._checkpoint).build_model().to(torch.device(self._device))
        layout: Any = torch.channels_last
        model.to(memory_format=layout)  # type: ignore[call-overload]
        return model


def exact_network(checkpoint: StoredCheckpoint, *, compiled: bool) -> ExactNetwork:
    """The integer layers of a checkpoint with an exact profile: for the compiled operators, or to be moved to a torch device with `to`.

    Raises UnsupportedError for models and weights that it does not cover, FileError for damaged ones.
    """
    bits, shapes = checkpoint.packing
    weights = checkpoint.weights
    if any(value.dtype.kind == "f" and value.dtype.itemsize != 2 for value in weights.values()):
        raise UnsupportedError(
            "the exact profile's integers are made of float16 weights", advice="export it again with --exact"
        )
    functions, fractions = checkpoint.stored_functions, checkpoint.fractions
    try:
        return ExactNetwork(checkpoint.config, Weights(weights, shapes, bits), fractions, functions, compiled=compiled)
    except HpcmError as error:
        raise error.in_file(checkpoint.path) from error
    except (ValueError, IndexError, KeyError, TypeError) as error:
        reason = f"the weights or the exact profile's units do not fit the configuration ({str(error)[:200]})"
        raise FileError(reason, file=checkpoint.path, advice=AGAIN) from error
