"""Codec: from an image to latents, symbols and bytes, and back.

A picture is analysed tile by tile, each with a halo so that no seams appear. An engine codes every tile's latents into four streams, and
the container stores the streams. Decoding does the same in reverse. Both process one row of tiles at a time and hold no more of the
picture in memory than that needs (`tiles.bands`).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpcm_codec import arguments
from hpcm_codec.bitstream import container
from hpcm_codec.bitstream.container import Header, HpcmStream, TileStreams
from hpcm_codec.bitstream.quality import quality_code, quality_of
from hpcm_codec.constants import (
    DEFAULT_MAX_PIXELS,
    DEFAULT_MODEL,
    DEFAULT_QUALITY,
    FINEST_SCALE,
)
from hpcm_codec.engines.interface import Engine, Latents, Record
from hpcm_codec.engines.loading import Engines
from hpcm_codec.engines.models import Models
from hpcm_codec.engines.pictures import analysed_tiles, synthesised_strips
from hpcm_codec.errors import CorruptStreamError, UnsupportedError, UsageError, printable
from hpcm_codec.extensions import extensions_of, extras_in
from hpcm_codec.images import Picture, PixelSource, StripPicture, decode_alpha
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.observing import UNOBSERVED, Observer
from hpcm_codec.system.parallel import in_order
from hpcm_codec.tiles.bands import Neighbourhood, latents_seen, tiles_needed
from hpcm_codec.tiles.grid import HALO_LATENTS, Rectangle, Tile, TileGrid
from hpcm_codec.tiles.windows import tiles_of
from hpcm_codec.weights.families import Family
from hpcm_codec.weights.stored import StoredCheckpoint, read_models

if TYPE_CHECKING:
    from hpcm_codec.weights.checkpoints import Checkpoint

PROFILES = ("auto", "exact", "float")


@dataclass(frozen=True)
class Encoded:
    """data: the file's bytes; header: the header in them; latents: as a decoder will decode them, 1×M×h×w, for `Codec.reconstruct`."""

    data: bytes
    header: Header
    latents: Latents


class Codec:
    """A loaded model that encodes and decodes pictures. Use one for many pictures: loading is the slow part.

    A family of models (`weights.families`) is used in the same way: the quality chooses the model that encodes, the file the one that
    decodes. One of them at a time is in memory, and loaded when it is needed.

    device:       "cpu", "cuda", or "auto" for CUDA where there is one.
    profile:      how files are encoded: "exact" (probabilities in integers: they decode on every machine), "float", or "auto" for exact
                  where the checkpoint has it. Decoding follows the file.
    tile_workers: how many tiles of a large picture are coded at a time, each in a thread, on the CPU and in the exact profile. Files and
                  pixels do not depend on it; each one after the first takes 0.1 GB (0.3 GB where torch computes).

    >>> import numpy as np
    >>> from hpcm_codec import Picture, decode, encode, load_codec
    >>> codec = load_codec(device="cpu")
    >>> data = codec.encode(Picture(np.zeros((20, 30, 3), np.uint8)), quality=30)
    >>> codec.decode(data).pixels.shape, decode(data, codec).size
    ((20, 30, 3), (30, 20))
    """

    def __init__(
        self,
        checkpoint: StoredCheckpoint | Checkpoint | Family,
        device: str = "auto",
        profile: str = "auto",
        tile_workers: int = 1,
    ) -> None:
        stored = checkpoint if isinstance(checkpoint, (StoredCheckpoint, Family)) else checkpoint.as_stored()
        self._path = stored.path
        self._models = Models(stored, device)
        self.profile = self._profile(profile)
        self.tile_workers = tile_workers
        self._observer: Observer = UNOBSERVED

    @property
    def identity(self) -> bytes:
        """8 bytes: the model's, which its files name; of a family, one of its own, while files name the model's (`identity_at`)."""
        return self._models.identity

    @property
    def qualities(self) -> tuple[float, ...]:
        """The qualities that give different files, rising: 0 to 100 in half steps; one for each model of a family; 50 for a fixed rate."""
        return tuple(quality_of(code) for code in self._models.codes)

    def nearest_quality(self, quality: float) -> float:
        """The one of `qualities` that a quality of 0 .. 100 stands for: the nearest, the higher of two that are. Raises UsageError."""
        return quality_of(self._models.nearest_code(quality_code(quality)))

    def identity_at(self, quality: float) -> bytes:
        """The identity of the model that encodes at a quality of 0 .. 100. Raises UsageError for others."""
        return self._models.identities[self._models.number_at(quality_code(quality))]

    def at(self, quality: float) -> Codec:
        """A codec of the model that encodes at a quality of 0 .. 100, loaded: this one itself, unless it is of a family.

        Raises UsageError for other qualities, FileError for a family's file that is damaged.
        """
        return self._with(self._models.number_at(quality_code(quality)))

    def _with(self, number: int) -> Codec:
        """A codec of one of the models, loaded."""
        if not self._models.several:
            return self
        other = copy.copy(self)
        other._models = Models.of(self._models.load(number), self._models.device)
        other._observe(self._observer)
        return other

    @property
    def config(self) -> ModelConfig:
        """The model's configuration. Raises UsageError for a family, as do `engines` and `engine`: see `at`."""
        return self._models.one.config

    @property
    def engines(self) -> Engines:
        """What computes, by profile."""
        return self._models.one.engines

    def with_profile(self, profile: str) -> Codec:
        """The same loaded model, encoding in that profile; this codec itself where it does."""
        if self._profile(profile) == self.profile:
            return self
        other = copy.copy(self)
        other.profile = self._profile(profile)
        return other

    def _profile(self, profile: str) -> str:
        """The profile for a setting; raises UsageError for unknown ones, UnsupportedError where the checkpoint lacks it."""
        if profile not in PROFILES:
            raise UsageError(f"there is no profile {profile!r}", advice=f"use one of {', '.join(PROFILES)}")
        if profile == "exact" and not self._models.exact:
            name = printable(str(self._path)) if self._path.is_file() else "MODEL"
            command = f"hpcm checkpoints export {name} -o NEW.safetensors --exact --calibrate FOLDER"
            raise UnsupportedError(
                "this model has no exact profile", advice=f"add one with `{command}` (FOLDER: of photographs)"
            )
        return ("exact" if self._models.exact else "float") if profile == "auto" else profile

    @property
    def engine(self) -> Engine:
        """The engine that encodes."""
        return self.engines[self.profile]

    @property
    def device(self) -> str:
        """Where the model runs: "cpu", "cuda", "cuda:1" …"""
        return self._models.device if self._models.several else self.engine.device

    @property
    def exact_pixels(self) -> bool:
        """Whether files of the exact profile show the same pixels here as on every machine: this engine computes transforms in integers."""
        engines = self.at(DEFAULT_QUALITY).engines
        return "exact" in engines and engines["exact"].exact_pixels

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """While it lasts, all stages of this codec's work (benchmark.stages.STAGES) are reported to `observer`. Not for several threads."""
        self._observe(observer)
        try:
            yield
        finally:
            self._observe(UNOBSERVED)

    def _observe(self, observer: Observer) -> None:
        self._observer = observer
        if not self._models.several:  # a family's are told when one is loaded
            for engine in self.engines.made:
                engine.observer = observer

    # -- image → bytes ------------------------------------------------------------------------------------------

    def encode(self, picture: PixelSource, quality: float = DEFAULT_QUALITY) -> bytes:
        """The picture as a .hpcm file's bytes. quality: 0 (smallest) to 100, in half steps.

        Pixels are read from top to bottom, a row of tiles with its halo at a time. Raises UsageError for other qualities.
        """
        codec = self.at(arguments.quality(quality))
        return codec._encode_tiles(picture, analysed_tiles(codec.engine, [picture]), quality, None)

    def encode_with_latents(self, picture: PixelSource, quality: float = DEFAULT_QUALITY) -> Encoded:
        """Encode, and keep the decoded latents; raises UsageError for a quality outside 0 .. 100."""
        codec = self.at(arguments.quality(quality))
        return codec.encode_analysed(picture, codec.analyse(picture), quality)

    def analyse(self, picture: PixelSource) -> Latents:
        """The picture's latents before rounding, 1×M×h×w: the same for every quality. Raises UsageError for a family: see `at`."""
        return self.analyse_together([picture])

    def analyse_together(self, pictures: Sequence[PixelSource]) -> Latents:
        """The latents before rounding, B×M×h×w, of B pictures of one size. A GPU needs less time for them together than one by one.

        On the CPU the result equals that of `analyse`, bit for bit. On a GPU the kernel may depend on the size of the batch, and the last
        bit may differ; then a symbol that is close to rounding the other way may differ too, and with it the file. It still decodes.
        """
        size = TileGrid(pictures[0].width, pictures[0].height).latents
        latents = self.engine.new_latents(len(pictures), size.height, size.width)
        for tile, analysed in analysed_tiles(self.engine, pictures):
            latents[(..., *tile.latents.slices)] = analysed
        return latents

    def encode_analysed(self, picture: PixelSource, analysed: Latents, quality: float) -> Encoded:
        """Encode a picture (quality 0 .. 100) whose latents `analyse` returned."""
        quality_code(quality)
        decoded = self.engine.new_latents(*analysed.shape[:1], *analysed.shape[2:])
        data = self._encode_tiles(picture, tiles_of(analysed, picture.width, picture.height), quality, decoded)
        return Encoded(data, self._header(picture, quality), decoded)

    def bytes_of_analysed(self, picture: PixelSource, analysed: Latents, quality: float) -> bytes:
        """`encode_analysed` without keeping the decoded latents."""
        quality_code(quality)
        return self._encode_tiles(picture, tiles_of(analysed, picture.width, picture.height), quality, None)

    def _encode_tiles(
        self, picture: PixelSource, tiles: Iterable[tuple[Tile, Latents]], quality: float, decoded: Latents | None
    ) -> bytes:
        """The file's bytes, of all tiles and their latents. decoded: if not None, filled with the latents that a decoder will decode."""
        header = self._header(picture, quality)

        def coded(item: tuple[Tile, Latents]) -> TileStreams:
            tile, latents = item
            encoded = self.engine.encode(latents, header.quality_code)
            if decoded is not None:
                decoded[(..., *tile.latents.slices)] = encoded.latents
            return TileStreams(*encoded.payloads, symbol_check=encoded.symbol_check)

        streams = tuple(in_order(coded, tiles, self._workers(self.engine, header)))
        with self._observer.stage("container"):
            return container.write_stream(HpcmStream(header, streams, extensions_of(picture)))

    def _header(self, picture: PixelSource, quality: float) -> Header:
        return Header(
            picture.width,
            picture.height,
            self._models.nearest_code(quality_code(quality)),
            self.identity,
            grey=picture.grey,
            float_profile=self.profile == "float",
        )

    # -- bytes → image ------------------------------------------------------------------------------------------

    def decode(
        self, data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, partial: bool = False, scale: str = FINEST_SCALE
    ) -> Picture:
        """The picture of a .hpcm file.

        partial: decode the undamaged part of a truncated or damaged file; notices report what is missing. Latents of missing
                 chunks take the values that the model predicts; a chunk in which the file ends is read as far as it goes.
        scale:   "hyper", "s1", "s2" or "s3": the finest one to decode; the others take the values that the model predicts.
        Raises CorruptStreamError for damaged data, UnsupportedError for another model's file or a newer format, UsageError for an
        unknown scale.
        """
        return self.decode_strips(data, max_pixels, partial, scale).whole()

    def decode_region(
        self,
        data: bytes,
        region: tuple[int, int, int, int],
        max_pixels: int = DEFAULT_MAX_PIXELS,
        partial: bool = False,
        scale: str = FINEST_SCALE,
    ) -> Picture:
        """A part of the picture, exactly as `decode` would show it, from the tiles it touches (and those within 64 pixels of it).

        region: x, y, width, height in pixels. Raises as `decode`, and UsageError for a region that is not inside the picture.
        """
        return self.decode_strips(data, max_pixels, partial, scale, region).whole()

    def decode_strips(
        self,
        data: bytes,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        partial: bool = False,
        scale: str = FINEST_SCALE,
        region: tuple[int, int, int, int] | None = None,
    ) -> StripPicture:
        """As `decode` and `decode_region`, but returns pixels from top to bottom while they are decoded; the whole picture is never held.

        Errors of the file are raised here, with one exception: a tile that does not decode to what its encoder coded raises
        CorruptStreamError when its strip is read.
        """
        return self.decode_parsed(self._parse(data, max_pixels, partial, scale), region)

    def decode_parsed(self, stream: HpcmStream, region: tuple[int, int, int, int] | None = None) -> StripPicture:
        """`decode_strips` of a file that `bitstream.container.parse_stream` has read."""
        header = stream.header
        codec = self._of(header)
        engine = codec._engine_of(header)
        area = header.grid[0].picture_pixels if region is None else header.grid.region(*arguments.region(region))
        alpha = stream.extensions.get(container.ALPHA)
        decoded_alpha = None if alpha is None else decode_alpha(alpha, header.width, header.height)[area.slices]
        extras, notices = extras_in(stream.extensions)
        return StripPicture(
            width=area.width,
            height=area.height,
            grey=header.grey,
            strips=codec._decoded_strips(engine, stream, area),
            alpha=None if decoded_alpha is None else np.ascontiguousarray(decoded_alpha),
            icc=stream.extensions.get(container.ICC),
            exif=stream.extensions.get(container.EXIF),
            xmp=stream.extensions.get(container.XMP),
            notices=(*(f"shown in part: {problem}" for problem in stream.problems), *notices),
            extras=extras,
        )

    def _decoded_strips(self, engine: Engine, stream: HpcmStream, area: Rectangle) -> Iterator[NDArray[np.uint8]]:
        header, grid = stream.header, stream.header.grid
        # where a pixel may depend on latents outside its halo, windows are always filled completely
        seen = latents_seen(area, grid) if engine.local_synthesis else grid.latents

        def decoded(tile: Tile) -> Latents:
            return self._decode_tile(tile, stream)

        with closing(in_order(decoded, tiles_needed(area, grid, seen), self._workers(engine, header))) as tiles:
            neighbourhood = Neighbourhood(grid, lambda _: next(tiles), seen, engine.new_latents)
            yield from synthesised_strips(engine, header, area, neighbourhood.window)

    def symbol_digest(self, data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> str:
        """SHA-256 (hexadecimal) over all symbols of a file, int32 little-endian in coding order. Every machine must find the same.

        Raises as `decode`.
        """
        digest = hashlib.sha256()
        stream = self._parse(data, max_pixels, partial=False, scale=FINEST_SCALE)
        codec = self._of(stream.header)
        for tile in stream.header.grid:
            codec._decode_tile(tile, stream, lambda symbols: digest.update(symbols.astype("<i4").tobytes()))
        return digest.hexdigest()

    def _parse(self, data: bytes, max_pixels: int, partial: bool, scale: str) -> HpcmStream:
        data = arguments.bytes_of_file(data)
        with self._observer.stage("container"):
            return container.parse_stream(data, max_pixels=max_pixels, allow_truncated=partial, scale=scale)

    def _of(self, header: Header) -> Codec:
        """A codec of the model that made a file, loaded; raises UnsupportedError for another model's."""
        made_with = header.checkpoint_id
        if made_with not in self._models.identities:
            here = self.identity.hex()
            loaded = (
                f"which the family {here} does not have" if self._models.several else f"but the one loaded is {here}"
            )
            advice = "decode with --model naming the checkpoint it was made with"
            raise UnsupportedError(f"made with the model {made_with.hex()}, {loaded}", advice=advice)
        return self._with(self._models.identities.index(made_with))

    def _engine_of(self, header: Header) -> Engine:
        """The engine that decodes a file of this model; raises UnsupportedError for a profile that it lacks."""
        if header.profile not in self.engines:
            raise UnsupportedError(
                "made in the exact profile, which this model's checkpoint lacks",
                advice="decode with the checkpoint it was made with",
            )
        return self.engines[header.profile]

    def _decode_tile(self, tile: Tile, stream: HpcmStream, record: Record | None = None) -> Latents:
        header, streams = stream.header, stream.tiles[tile.index]
        size = (tile.latents.height, tile.latents.width)
        decoded = self._engine_of(header).decode(streams.payloads, size, header.quality_code, streams.begun, record)
        if decoded.complete and decoded.symbol_check != streams.symbol_check:
            reason = f"tile {tile.index} does not decode to what its encoder coded"
            if header.float_profile:
                raise CorruptStreamError(
                    f"{reason}: the arithmetic of this machine or of its libraries differs from the encoder's",
                    advice="it is of the float profile: decode it on the machine that made it",
                )
            raise CorruptStreamError(reason, advice="run `hpcm doctor --selftest`; if that passes, get the file again")
        return decoded.latents

    # -- latents → pixels ---------------------------------------------------------------------------------------

    def reconstruct(self, latents: Latents, header: Header) -> NDArray[np.uint8]:
        """Pixels H×W×3 (grey: H×W×1) of decoded latents 1×M×h×w."""
        return np.concatenate(list(self.reconstruct_strips(latents, header)))

    def reconstruct_strips(self, latents: Latents, header: Header) -> Iterator[NDArray[np.uint8]]:
        """The same from top to bottom, a row of tiles at a time."""
        yield from synthesised_strips(
            self._of(header)._engine_of(header),
            header,
            header.grid[0].picture_pixels,
            lambda tile, _: latents[(..., *tile.with_halo(HALO_LATENTS).latents.slices)],
        )

    def _workers(self, engine: Engine, header: Header) -> int:
        """How many tiles are coded at a time."""
        several = engine.parallel_tiles and not self._observer.watches
        return min(self.tile_workers, len(header.grid)) if several else 1


def load_codec(model: str = DEFAULT_MODEL, device: str = "auto", profile: str = "auto", tile_workers: int = 1) -> Codec:
    """A Codec for a checkpoint or a family given by name or path; the other settings as `Codec` takes them."""
    return Codec(read_models(model), device, profile, tile_workers)
