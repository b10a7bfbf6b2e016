"""The engines that compute with torch, on a CPU or a GPU. They differ only in the arithmetic that decides probabilities.

Transforms and hyper analysis are in floating point in both. `FloatEngine` has the whole network in floating point; in `ExactEngine`
everything that a decoder needs to find the symbols is computed in integers (docs/determinism.md). `integer.IntegerEngine` needs no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcm_codec.bitstream.quality import quality_of
from hpcm_codec.constants import SCALES
from hpcm_codec.engines.exact.network import ExactNetwork
from hpcm_codec.engines.graphs import CHECKED_USES, PLAIN_USES, Walk, graphs_for
from hpcm_codec.engines.interface import DecodedTile, EncodedTile, Record
from hpcm_codec.engines.ports import DecoderPort, EncoderPort
from hpcm_codec.entropy.distributions import sigma_index
from hpcm_codec.entropy.rans_encoder import CoderTables
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.rate import quality_to_position
from hpcm_codec.model.walk import SymbolPort
from hpcm_codec.observing import UNOBSERVED, Observer
from hpcm_codec.system.threads import after_fork, on_threads
from hpcm_codec.tiles.grid import LATENTS_PER_UNIT

# The float profile's context model always runs on this many threads: with another number, matrix products sum in another order, and one
# different bit makes the decoder fail. Transforms use as many threads as torch is set to.
CONTEXT_THREADS = 2

CodeHyper = Callable[
    [Tensor, Tensor], Tensor
]  # (table indexes, means), 1×N×1×1 each → symbols of the hyper-latents, 1×N×h×w

Result = TypeVar("Result")


def _by_itself(method: Callable[..., Result]) -> Callable[..., Result]:
    """Makes a function an engine's method: it computes without gradients, in its own precision regardless of torch.autocast, and on one
    thread in a forked child."""

    @wraps(method)
    def computed(self: TorchEngine, *values: Any, **named: Any) -> Result:
        after_fork(self.device)
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            return method(self, *values, **named)

    return computed


class TorchEngine(ABC):
    """The common part of both engines: an `interface.Engine`. On a GPU the walk is replayed from CUDA graphs, on the CPU it is plain code.

    model: in evaluation mode, on the device.
    """

    profile: str
    parallel_tiles = exact_pixels = False

    def __init__(self, model: HPCM, tables: CoderTables, device: torch.device) -> None:
        self.model, self._tables, self._device = model, tables, device
        self.graphs = graphs_for(device)
        self.observer: Observer = UNOBSERVED

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def _walk_device(self) -> torch.device | None:
        """The device of the walk's tensors; None if it uses numpy arrays."""
        return self._device

    def _for_walk(self, x: Tensor) -> Any:
        """A tensor in the form that the walk and its ports use."""
        return x if self._walk_device is not None else x.numpy()

    @property
    def local_synthesis(self) -> bool:
        # guaranteed only for plain convolutions on the CPU
        return self._device.type == "cpu"

    @property
    def warm_up_uses(self) -> int:
        return 1 if self.graphs is None else PLAIN_USES + CHECKED_USES

    def new_latents(self, pictures: int, height: int, width: int) -> Tensor:
        with torch.inference_mode(False):  # else slices could not be assigned to outside of inference mode
            shape = (pictures, self.model.config.latent_channels, height, width)
            return torch.zeros(shape, device=self._device).contiguous(memory_format=torch.channels_last)

    # -- latents of an image --------------------------------------------------------------------------------------

    @_by_itself
    def analyse(self, windows: Sequence[NDArray[np.uint8]]) -> Tensor:
        images = [self._image_of(window) for window in windows]
        batch = images[0] if len(images) == 1 else torch.cat(images)
        with self.observer.stage("analysis"):
            return self.model.analyse(batch)

    def _image_of(self, window: NDArray[np.uint8]) -> Tensor:
        """1×3×h×w in [0, 1]; grey three times."""
        return torch.from_numpy(window).to(self._device).permute(2, 0, 1)[None].expand(-1, 3, -1, -1).float().div(255)

    # -- coding of latents ----------------------------------------------------------------------------------------

    @_by_itself
    def encode(self, latents: Tensor, quality_code: int) -> EncodedTile:
        rate = self._rate(quality_code)
        steps = latents * self._latent_gain(quality_code)
        port = EncoderPort(self._for_walk(steps), self._tables, self.observer)
        with self.observer.stage("hyper analysis"):
            hyper = self._for_walk(self.model.hyper_latents(latents, rate))
        decoded = self._code(port, lambda indexes, mean: port.code_hyper(hyper, indexes, mean), quality_code)
        streams = port.streams()
        hyper_stream, s1, s2, s3 = (streams[scale] for scale in SCALES)
        return EncodedTile((hyper_stream, s1, s2, s3), port.symbol_check, decoded)

    @_by_itself
    def decode(
        self,
        payloads: Sequence[bytes | None],
        size: tuple[int, int],
        quality_code: int,
        begun: bytes | None = None,
        record: Record | None = None,
    ) -> DecodedTile:
        streams = dict(zip(SCALES, payloads, strict=True))
        port = DecoderPort(streams, self._tables, self._walk_device, record, begun, self.observer)
        shape = (1, self.model.config.hyper_channels, *(side // LATENTS_PER_UNIT for side in size))
        decoded = self._code(port, lambda indexes, _: port.code_hyper(shape, indexes), quality_code)
        return DecodedTile(decoded, port.complete, port.symbol_check)

    @abstractmethod
    def _latent_gain(self, quality_code: int) -> Tensor | float:
        """Quantisation steps per unit of latent, 1×M×1×1."""

    @abstractmethod
    def _code(self, port: SymbolPort, code_hyper: CodeHyper, quality_code: int) -> Tensor:
        """Exchange the hyper-latents, and walk over the latents; returns the decoded latents 1×M×h×w."""

    def _walked(self, walk: Walk, port: SymbolPort, symbols: Tensor, quality: Tensor) -> Tensor:
        with self.observer.stage("hyper synthesis"):
            if self.graphs is None or self.observer.watches:
                return walk(port, symbols, quality)
            return self.graphs.run(symbols.shape, walk, port, symbols, quality)

    # -- image of latents -----------------------------------------------------------------------------------------

    @_by_itself
    def synthesise(
        self, latents: Tensor, quality_code: int, area: tuple[slice, slice], grey: bool
    ) -> NDArray[np.uint8]:
        # always the whole window in one layout, so that the sums of a pixel do not depend on the requested area
        whole = latents.contiguous(memory_format=torch.channels_last)
        rate = self._rate(quality_code)
        with self.observer.stage("synthesis"):
            image = self.model.synthesise(whole, rate)
        image = image[(0, slice(None), *area)]
        if grey:
            image = image.mean(dim=0, keepdim=True)
        image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
        pixels: NDArray[np.uint8] = image.permute(1, 2, 0).cpu().numpy()
        return pixels

    def _rate(self, quality_code: int) -> Tensor:
        return self.model.rate_at(quality_to_position(quality_of(quality_code), self.model.config.rate_levels))


class FloatEngine(TorchEngine):
    """The whole network in floating point: for research, and for networks that the exact profile does not cover."""

    profile = "float"

    def _latent_gain(self, quality_code: int) -> Tensor | float:
        log_gain = self.model.latent_log_gain(self._rate(quality_code))
        return 1.0 if log_gain is None else log_gain.exp()

    def _code(self, port: SymbolPort, code_hyper: CodeHyper, quality_code: int) -> Tensor:
        with on_threads(CONTEXT_THREADS):
            rate = self._rate(quality_code)
            with self.observer.stage("hyper synthesis"):
                scale, mean = self.model.hyper_distribution(rate)
            symbols = code_hyper(sigma_index(scale), mean)
            return self._walked(self._walk, port, symbols, rate)

    def _walk(self, port: SymbolPort, symbols: Tensor, rate: Tensor) -> Tensor:
        _, mean = self.model.hyper_distribution(rate)
        return self.model.code_latents(symbols.to(mean.dtype) + mean, rate, port)


class ExactEngine(TorchEngine):
    """Computes everything that decides probabilities in integers: the same symbols on every machine.

    network: the integer layers of `model`: as tensors on the device, or `compiled` for the CPU, and the walk is in numpy arrays.
    """

    profile = "exact"

    def __init__(self, model: HPCM, network: ExactNetwork, tables: CoderTables, device: torch.device) -> None:
        super().__init__(model, tables, device)
        self.network = network
        self.parallel_tiles = device.type == "cpu"  # on a GPU, tiles share one queue and the memory of captured graphs

    @property
    def _walk_device(self) -> torch.device | None:
        return None if self.network.compiled else self._device

    def _latent_gain(self, quality_code: int) -> Tensor | float:
        gain: Tensor = torch.as_tensor(self.network.latent_gain(self.network.position(quality_code)))
        return gain

    def _code(self, port: SymbolPort, code_hyper: CodeHyper, quality_code: int) -> Tensor:
        position = self.network.position(quality_code)
        with self.observer.stage("hyper synthesis"):
            indexes, mean = self.network.hyper_distribution(position)
        symbols = code_hyper(indexes, mean)
        return self._walked(self._walk, port, symbols, position)

    def _walk(self, port: SymbolPort, symbols: Tensor, position: Tensor) -> Tensor:
        latents = self.network.real_latents(self.network.code_latents(symbols, position, port))
        return torch.as_tensor(latents)
