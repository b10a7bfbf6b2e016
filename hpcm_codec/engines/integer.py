"""The engine in integers: every number from pixels to symbols and back is a function of the file, and on a CPU no torch is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.constants import SCALES
from hpcm_codec.engines.exact.network import ExactNetwork
from hpcm_codec.engines.interface import DecodedTile, EncodedTile, Latents, Record
from hpcm_codec.engines.ports import DecoderPort, EncoderPort
from hpcm_codec.entropy.rans_encoder import CoderTables
from hpcm_codec.observing import UNOBSERVED, Observer
from hpcm_codec.ops import integer
from hpcm_codec.system.threads import after_fork
from hpcm_codec.tiles.grid import LATENTS_PER_UNIT


class IntegerEngine:
    """`engines.interface.Engine` with all of the network in integers.

    Latents before rounding are integers in the units of the analysis, decoded ones in those of `ExactNetwork.code_latents`.
    network: with the units of the transforms; compiled, in numpy arrays, or moved to a torch device.
    """

    profile = "exact"
    local_synthesis = exact_pixels = True
    warm_up_uses = 1

    def __init__(self, network: ExactNetwork, tables: CoderTables) -> None:
        self.observer: Observer = UNOBSERVED
        self.network, self._tables = network, tables
        self.device = "cpu" if network.device is None else str(network.device)
        self.parallel_tiles = self.device == "cpu"

    def _position(self, quality_code: int) -> Any:
        """Where a quality lies among the network's levels. Raises HpcmError on a GPU in a forked child."""
        after_fork(self.device)
        return self.network.position(quality_code)

    def new_latents(self, pictures: int, height: int, width: int) -> Latents:
        shape = (pictures, height, width, self.network.config.latent_channels)
        return integer.channels_first(integer.zeros(shape, "int32", like=self.network.latent_fraction))

    def analyse(self, windows: Sequence[NDArray[np.uint8]]) -> Latents:
        position = self._position(0)
        with self.observer.stage("analysis"):
            analysed = [self.network.analyse(window, position) for window in windows]
        return integer.channels_first(analysed[0][None] if len(analysed) == 1 else integer.stacked(analysed))

    def encode(self, latents: Latents, quality_code: int) -> EncodedTile:
        network = self.network
        position = self._position(quality_code)
        quality = network.at(position)
        tokens = integer.narrow(integer.channels_last(latents[0]))
        gain = network.steps_per_unit(quality, network.analysis.fraction)
        steps = integer.channels_first(tokens * gain)
        port = EncoderPort(steps[None], self._tables, self.observer)
        with self.observer.stage("hyper analysis"):
            hyper = network.hyper_latents(tokens, position)
        hyper_gain = network.hyper_steps_per_unit(quality, network.hyper_analysis.fraction)
        levels, mean = network.hyper_distribution(position)
        symbols = port.code_hyper(integer.channels_first(hyper * hyper_gain)[None], levels, mean)
        with self.observer.stage("hyper synthesis"):
            decoded = network.code_latents(symbols, position, port)
        streams = port.streams()
        payloads = streams["hyper"], streams["s1"], streams["s2"], streams["s3"]
        return EncodedTile(payloads, port.symbol_check, integer.channels_first(decoded)[None])

    def decode(
        self,
        payloads: Sequence[bytes | None],
        size: tuple[int, int],
        quality_code: int,
        begun: bytes | None = None,
        record: Record | None = None,
    ) -> DecodedTile:
        network = self.network
        port = DecoderPort(
            dict(zip(SCALES, payloads, strict=True)), self._tables, network.device, record, begun, self.observer
        )
        position = self._position(quality_code)
        height, width = (side // LATENTS_PER_UNIT for side in size)
        levels, _ = network.hyper_distribution(position)
        symbols = port.code_hyper((1, network.config.hyper_channels, height, width), levels)
        with self.observer.stage("hyper synthesis"):
            decoded = network.code_latents(symbols, position, port)
        return DecodedTile(integer.channels_first(decoded)[None], port.complete, port.symbol_check)

    def synthesise(
        self, latents: Latents, quality_code: int, area: tuple[slice, slice], grey: bool
    ) -> NDArray[np.uint8]:
        rows, columns = area
        box = rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
        tokens = integer.as_int32(integer.channels_last(latents[0]))
        with self.observer.stage("synthesis"):
            pixels: NDArray[np.uint8] = self.network.synthesise(tokens, self._position(quality_code), box, grey)
        return pixels
