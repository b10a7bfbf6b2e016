"""Codec: the whole staircase, image → latents → symbols → bytes and back, readable top to bottom.

A picture is analysed tile by tile (each with a halo, so that tiles leave no seams), every tile's latents are coded by
the context model into four streams, and the container takes the streams. Decoding walks the same steps backwards.
Both go through the picture row of tiles by row of tiles, and hold no more of it than that takes (`bands`).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcm_codec import arguments
from hpcm_codec.bitstream import container
from hpcm_codec.bitstream.container import DEFAULT_MAX_PIXELS, Header, HpcmStream, TileStreams
from hpcm_codec.engines.coding import TileCoder
from hpcm_codec.engines.devices import device_of
from hpcm_codec.entropy.ports import DecoderPort, EncoderPort
from hpcm_codec.entropy.range_coder import CoderTables
from hpcm_codec.errors import CorruptStreamError, UnsupportedError, UsageError
from hpcm_codec.images import Picture, PixelSource, StripPicture, decode_alpha, encode_alpha
from hpcm_codec.images.extras import extras_in, payloads_of
from hpcm_codec.model.rate import quality_to_position
from hpcm_codec.system.parallel import in_order
from hpcm_codec.system.threads import after_fork, heed_forks
from hpcm_codec.tiles.bands import Neighbourhood, latents_seen, tiles_needed
from hpcm_codec.tiles.grid import HALO_LATENTS, LATENTS_PER_UNIT, PIXELS_PER_UNIT, Rectangle, Tile, TileGrid, Window
from hpcm_codec.weights.checkpoints import Checkpoint, load_checkpoint
from hpcm_codec.weights.registry import DEFAULT_MODEL

DEFAULT_QUALITY = 50.0
FINEST_SCALE = container.SCALES[-1]
PROFILES = ("auto", "exact", "float")


Result = TypeVar("Result")


def _in_its_own_precision(method: Callable[..., Result]) -> Callable[..., Result]:
    """A Codec's method, in which torch.autocast of the program around it has no effect."""

    @wraps(method)
    def computed(self: Codec, *values: Any, **named: Any) -> Result:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *values, **named)

    return computed


@dataclass(frozen=True)
class Encoded:
    """data: the file's bytes; latents: what a decoder will decode, 1×M×h×w, for `Codec.reconstruct`."""

    data: bytes
    latents: Tensor


class Codec:
    """A loaded model that encodes and decodes pictures. Use one for many pictures: loading is the slow part.

    device:       "cpu", "cuda", or "auto" for CUDA where there is one.
    profile:      how files are encoded: "exact" (probabilities in integers: they decode on every machine), "float", or "auto" for exact
                  where the checkpoint has it. Decoding follows the file.
    tile_workers: threads that code tiles of a large picture, each one at a time, on the CPU and in the exact profile. Files and pixels
                  are the same; every further one takes 0.3 GB.

    >>> import numpy as np
    >>> from hpcm_codec import Picture, decode, encode, load_codec
    >>> codec = load_codec(device="cpu")
    >>> data = codec.encode(Picture(np.zeros((20, 30, 3), np.uint8)), quality=30)
    >>> codec.decode(data).pixels.shape, decode(data, codec).size
    ((20, 30, 3), (30, 20))
    """

    def __init__(
        self, checkpoint: Checkpoint, device: str = "auto", profile: str = "auto", tile_workers: int = 1
    ) -> None:
        heed_forks()
        self.device = device_of(device)
        self.tile_workers = tile_workers
        self.identity = checkpoint.identity
        self.config = checkpoint.config
        model = checkpoint.build_model()
        exact = checkpoint.build_exact(model)
        self.exact = None if exact is None else exact.to(self.device)
        self.profile = self._profile(profile)
        self.model = model.to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.coder = TileCoder(self.model, self.exact, self.device)
        self._tables = CoderTables(checkpoint.tables)

    def with_profile(self, profile: str) -> Codec:
        """The same loaded model, encoding in that profile; this codec itself where it does."""
        if self._profile(profile) == self.profile:
            return self
        other = copy.copy(self)
        other.profile = self._profile(profile)
        return other

    def _profile(self, profile: str) -> str:
        """The profile that is meant; raises UsageError, and UnsupportedError where the checkpoint lacks it."""
        if profile not in PROFILES:
            raise UsageError(f"there is no profile {profile!r}", advice=f"use one of {', '.join(PROFILES)}")
        if profile == "exact" and self.exact is None:
            raise UnsupportedError(
                "this model has no exact profile", advice="add one with `hpcm checkpoints export --exact`"
            )
        return ("float" if self.exact is None else "exact") if profile == "auto" else profile

    # -- image → bytes ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, picture: PixelSource, quality: float = DEFAULT_QUALITY) -> bytes:
        """The picture as a .hpcm file's bytes. quality: 0 (smallest) to 100, in half steps.

        Rows of pixels are asked for from top to bottom, a row of tiles with its halo at a time. Raises UsageError for other qualities.
        """
        quality = arguments.quality(quality)
        return self._encode_tiles(picture, self._analysed_tiles(picture), quality, None)

    def encode_with_latents(self, picture: PixelSource, quality: float = DEFAULT_QUALITY) -> Encoded:
        """Encode, and keep the decoded latents; raises UsageError for a quality outside 0 .. 100."""
        quality = arguments.quality(quality)
        return self.encode_analysed(picture, self.analyse(picture), quality)

    def analyse(self, picture: PixelSource) -> Tensor:
        """The picture's latents before rounding, 1×M×h×w: the same for every quality."""
        return self.analyse_together([picture])

    @torch.inference_mode()
    def analyse_together(self, pictures: Sequence[PixelSource]) -> Tensor:
        """The latents before rounding, B×M×h×w, of B pictures of one size, which a GPU does in less time than one by one.

        On the CPU they are those of `analyse`, to the last bit. On a GPU the size of a batch may decide which kernel computes, and a last
        bit may differ: then a symbol at the edge of rounding may too, and so may the file, but not whether it decodes.
        """
        latents = self._new_latents(TileGrid(pictures[0].width, pictures[0].height), len(pictures))
        for tile, analysed in self._analysed_tiles(*pictures):
            latents[(..., *tile.latents.slices)] = analysed
        return latents

    @torch.inference_mode()
    def encode_analysed(self, picture: PixelSource, analysed: Tensor, quality: float) -> Encoded:
        """Encode a picture (quality 0 .. 100) whose latents `analyse` has given."""
        decoded = torch.empty_like(analysed)
        return Encoded(self._encode_tiles(picture, _tiles_of(picture, analysed), quality, decoded), decoded)

    @torch.inference_mode()
    def bytes_of_analysed(self, picture: PixelSource, analysed: Tensor, quality: float) -> bytes:
        """`encode_analysed` without keeping the decoded latents."""
        return self._encode_tiles(picture, _tiles_of(picture, analysed), quality, None)

    def _analysed_tiles(self, *pictures: PixelSource) -> Iterator[tuple[Tile, Tensor]]:
        """Every tile of B pictures of one size with its latents before rounding, B×M×h×w."""
        after_fork(self.device.type)
        height = pictures[0].height
        grid = TileGrid(pictures[0].width, height)
        for row in range(grid.rows):
            tiles = grid.row(row)
            area = tiles[0].with_halo(HALO_LATENTS).pixels
            bands = [picture.rows(area.top, min(area.bottom, height)) for picture in pictures]
            for tile in tiles:
                window = tile.with_halo(HALO_LATENTS)
                pixels = [self._to_tensor(band, area.top, window) for band in bands]
                batch = pixels[0] if len(pixels) == 1 else torch.cat(pixels)
                yield tile, self._analyse_tile(batch, window, tile)

    @_in_its_own_precision
    def _analyse_tile(self, pixels: Tensor, window: Window, tile: Tile) -> Tensor:
        """The latents of a tile of the pixels in its window, B×3×H×W."""
        return _inner(self.model.analyse(pixels), window, tile)

    def _encode_tiles(
        self, picture: PixelSource, tiles: Iterable[tuple[Tile, Tensor]], quality: float, decoded: Tensor | None
    ) -> bytes:
        """The file's bytes, of all tiles and their latents. decoded: gets what a decoder will decode, unless None."""
        after_fork(self.device.type)
        header = Header(
            picture.width,
            picture.height,
            round(2 * quality),
            self.identity,
            grey=picture.grey,
            float_profile=self.profile == "float",
        )

        @torch.inference_mode()  # each thread has its own
        def coded(item: tuple[Tile, Tensor]) -> TileStreams:
            tile, latents = item
            streams, decoded_tile = self._encode_tile(latents, header)
            if decoded is not None:
                decoded[(..., *tile.latents.slices)] = decoded_tile
            return streams

        streams = in_order(coded, tiles, self._workers(header))
        return container.write_stream(HpcmStream(header, tuple(streams), _extensions_of(picture)))

    @_in_its_own_precision
    def _encode_tile(self, latents: Tensor, header: Header) -> tuple[TileStreams, Tensor]:
        rate = self._rate(header)
        port = EncoderPort(latents * self._latent_gain(header, rate), self._tables)
        hyper = self.model.hyper_latents(latents, rate)
        decoded = self.coder.decoded_latents(
            header, rate, port, lambda levels, mean: port.code_hyper(hyper, levels, mean)
        )
        return TileStreams(**port.streams(), symbol_check=port.symbol_check), decoded

    def _latent_gain(self, header: Header, rate: Tensor) -> Tensor | float:
        """Quantisation steps per unit of latent, 1×M×1×1, in the file's profile."""
        if self.exact is not None and not header.float_profile:
            return self.exact.latent_gain(self.exact.position(header.quality_code))
        log_gain = self.model.latent_log_gain(rate)
        return 1.0 if log_gain is None else log_gain.exp()

    # -- bytes → image ------------------------------------------------------------------------------------------

    def decode(
        self, data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, partial: bool = False, scale: str = FINEST_SCALE
    ) -> Picture:
        """The picture of a .hpcm file.

        partial: make the best of a file that was cut short or damaged; notices say what is missing. What has not
                 arrived of a tile's scales takes the values that the model predicts; a chunk in which the file ends is
                 read as far as it goes.
        scale:   "hyper", "s1", "s2" or "s3": the finest one to decode; the others take the values that the model predicts.
        Raises CorruptStreamError for damaged data, UnsupportedError for another model's file or a newer format, UsageError for a scale
        that there is not.
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
        """As `decode` and `decode_region`, giving pixels from top to bottom while they are decoded: the picture is never held whole.

        What is wrong with the file is raised here, except a tile that does not decode to what its encoder coded: its strip raises
        CorruptStreamError.
        """
        stream = self._parse(data, max_pixels, partial, scale)
        header = stream.header
        area = header.grid[0].picture_pixels if region is None else header.grid.region(*arguments.region(region))
        alpha = stream.extensions.get(container.ALPHA)
        decoded_alpha = None if alpha is None else decode_alpha(alpha, header.width, header.height)[area.slices]
        extras, notices = extras_in(stream.extensions)
        return StripPicture(
            width=area.width,
            height=area.height,
            grey=header.grey,
            strips=self._decoded_strips(stream, area),
            alpha=None if decoded_alpha is None else np.ascontiguousarray(decoded_alpha),
            icc=stream.extensions.get(container.ICC),
            exif=stream.extensions.get(container.EXIF),
            xmp=stream.extensions.get(container.XMP),
            notices=(*(f"shown in part: {problem}" for problem in stream.problems), *notices),
            extras=extras,
        )

    @torch.inference_mode()
    def _decoded_strips(self, stream: HpcmStream, area: Rectangle) -> Iterator[NDArray[np.uint8]]:
        after_fork(self.device.type)
        header, grid = stream.header, stream.header.grid
        # Only of the plain convolutions on the CPU it is certain that a pixel depends on nothing outside the latents it sees, not even
        # in its last bit; elsewhere windows are always filled.
        seen = latents_seen(area, grid) if self.device.type == "cpu" else grid.latents

        @torch.inference_mode()  # each thread has its own
        def decoded(tile: Tile) -> Tensor:
            return self._decode_tile(tile, stream.tiles[tile.index], header)

        with closing(in_order(decoded, tiles_needed(area, grid, seen), self._workers(header))) as tiles:
            yield from self._strips(header, area, Neighbourhood(grid, lambda _: next(tiles), seen).window)

    @torch.inference_mode()
    def symbol_digest(self, data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> str:
        """SHA-256 (hexadecimal) over all symbols of a file, int32 little-endian in coding order: what two machines must agree on.

        Raises as `decode`.
        """
        after_fork(self.device.type)
        digest = hashlib.sha256()
        stream = self._parse(data, max_pixels, partial=False, scale=FINEST_SCALE)
        for tile, streams in zip(stream.header.grid, stream.tiles, strict=True):
            self._decode_tile(
                tile, streams, stream.header, lambda symbols: digest.update(symbols.astype("<i4").tobytes())
            )
        return digest.hexdigest()

    def _parse(self, data: bytes, max_pixels: int, partial: bool, scale: str) -> HpcmStream:
        """The parts of a file that this model has made; raises as `decode`."""
        if scale not in container.SCALES:
            raise UsageError(f"there is no scale {scale!r}", advice=f"use one of {', '.join(container.SCALES)}")
        data = arguments.bytes_of_file(data)
        stream = container.parse_stream(data, max_pixels=max_pixels, allow_truncated=partial, scale=scale)
        self._refuse_too_large(stream.header, max_pixels)
        made_with = stream.header.checkpoint_id
        if made_with != self.identity:
            raise UnsupportedError(
                f"made with the model {made_with.hex()}, but the one loaded is {self.identity.hex()}",
                advice="decode with --model naming the checkpoint it was made with",
            )
        return stream

    @_in_its_own_precision
    def _decode_tile(
        self,
        tile: Tile,
        streams: TileStreams,
        header: Header,
        record: Callable[[NDArray[np.int32]], None] | None = None,
    ) -> Tensor:
        payloads = dict(zip(container.SCALES, streams.payloads, strict=True))
        port = DecoderPort(payloads, self._tables, self.device, record, streams.begun)
        height, width = (side // LATENTS_PER_UNIT for side in (tile.latents.height, tile.latents.width))
        shape = (1, self.config.hyper_channels, height, width)
        decoded = self.coder.decoded_latents(
            header, self._rate(header), port, lambda levels, _: port.code_hyper(shape, levels)
        )
        if port.complete and port.symbol_check != streams.symbol_check:
            reason = f"tile {tile.index} does not decode to what its encoder coded"
            if header.float_profile:
                raise CorruptStreamError(
                    f"{reason}: the arithmetic of this machine or of its libraries differs from the encoder's",
                    advice="it is of the float profile: decode it on the machine that made it",
                )
            raise CorruptStreamError(reason, advice="run `hpcm doctor --selftest`; if that passes, get the file again")
        return decoded

    # -- latents → pixels ---------------------------------------------------------------------------------------

    def reconstruct(self, latents: Tensor, header: Header) -> NDArray[np.uint8]:
        """Pixels H×W×3 (grey: H×W×1) of decoded latents 1×M×h×w."""
        return np.concatenate(list(self.reconstruct_strips(latents, header)))

    @torch.inference_mode()
    def reconstruct_strips(self, latents: Tensor, header: Header) -> Iterator[NDArray[np.uint8]]:
        """The same from top to bottom, a row of tiles at a time."""
        yield from self._strips(
            header,
            header.grid[0].picture_pixels,
            lambda tile, _: latents[(..., *tile.with_halo(HALO_LATENTS).latents.slices)],
        )

    def _strips(
        self, header: Header, area: Rectangle, window_latents: Callable[[Tile, bool], Tensor]
    ) -> Iterator[NDArray[np.uint8]]:
        """Pixels of an area, a strip for every row of tiles: the one way from latents to pixels.

        window_latents: the latents of a tile and its halo; also told whether the tile is the last in its row.
        """
        after_fork(self.device.type)
        rate = self._rate(header)
        columns = header.grid.columns_of(area)
        for row in header.grid.rows_of(area):
            tiles = header.grid.row(row)[columns.start : columns.stop]
            band = tiles[0].visible_pixels.clipped(area)
            strip = np.empty((band.height, area.width, 1 if header.grey else 3), np.uint8)
            for tile in tiles:
                visible = tile.visible_pixels.clipped(area)
                pixels = self._synthesise_tile(
                    window_latents(tile, tile is tiles[-1]), rate, tile, visible, header.grey
                )
                strip[visible.moved(-band.top, -area.left).slices] = pixels
            yield strip

    @_in_its_own_precision
    def _synthesise_tile(
        self, latents: Tensor, rate: Tensor, tile: Tile, visible: Rectangle, grey: bool
    ) -> NDArray[np.uint8]:
        """The visible pixels (given in pixels of the picture) of a tile, H×W×C, from the latents of its window."""
        # always the whole window in one layout, so that a pixel comes from the same sums whatever else is shown
        image = self.model.synthesise(latents.contiguous(memory_format=torch.channels_last), rate)
        origin = tile.with_halo(HALO_LATENTS).pixels
        image = image[(0, slice(None), *visible.moved(-origin.top, -origin.left).slices)]
        if grey:
            image = image.mean(dim=0, keepdim=True)
        image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
        return image.permute(1, 2, 0).cpu().numpy()

    # -- helpers ------------------------------------------------------------------------------------------------

    @staticmethod
    def _refuse_too_large(header: Header, max_pixels: int) -> None:
        """A narrow picture is extended to 64 pixels: its latents may take far more memory than its pixels."""
        extended = header.grid.pixels.height * header.grid.pixels.width
        if extended > max(max_pixels, PIXELS_PER_UNIT**2):
            raise CorruptStreamError(
                f"a picture of {header.width}×{header.height} pixels is coded as {extended} pixels, above the limit of "
                f"{max_pixels}",
                advice="if it is sound, raise the limit",
            )

    def _workers(self, header: Header) -> int:
        """How many tiles are coded at a time: what decides bits must not share torch's number of threads, or a GPU's queue."""
        return 1 if header.float_profile or self.device.type != "cpu" else min(self.tile_workers, len(header.grid))

    def _rate(self, header: Header) -> Tensor:
        return self.model.rate_at(quality_to_position(header.quality, self.config.rate_levels))

    def _new_latents(self, grid: TileGrid, pictures: int = 1) -> Tensor:
        shape = (pictures, self.config.latent_channels, grid.latents.height, grid.latents.width)
        return torch.empty(shape, device=self.device).contiguous(memory_format=torch.channels_last)

    def _to_tensor(self, band: NDArray[np.uint8], top: int, window: Window) -> Tensor:
        """The window's pixels, 1×3×h×w in [0, 1]; what lies beyond the picture repeats its last row and column.

        band: the rows of the picture from `top` on, at least those of the window that there are.
        """
        area = window.pixels
        rows = np.minimum(np.arange(area.top, area.bottom) - top, band.shape[0] - 1)
        columns = np.minimum(np.arange(area.left, area.right), band.shape[1] - 1)
        part = torch.from_numpy(band[rows[:, None], columns[None, :]]).to(self.device)
        return part.permute(2, 0, 1)[None].expand(-1, 3, -1, -1).float().div(255)


def _tiles_of(picture: PixelSource, latents: Tensor) -> Iterator[tuple[Tile, Tensor]]:
    """Every tile of a picture with its part of the latents."""
    for tile in TileGrid(picture.width, picture.height):
        yield tile, latents[(..., *tile.latents.slices)]


def _inner(latents: Tensor, window: Window, tile: Tile) -> Tensor:
    """The tile's own latents out of its window's."""
    top, left = window.row_offset, window.column_offset
    return latents[..., top : top + tile.latents.height, left : left + tile.latents.width]


def _extensions_of(picture: PixelSource) -> dict[int, bytes]:
    """The picture's alpha and metadata as extension chunks."""
    alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
    parts = {
        container.ALPHA: alpha,
        container.ICC: picture.icc,
        container.EXIF: picture.exif,
        container.XMP: picture.xmp,
        **payloads_of(picture.extras),
    }
    return {kind: payload for kind, payload in parts.items() if payload is not None}


def load_codec(model: str = DEFAULT_MODEL, device: str = "auto", profile: str = "auto", tile_workers: int = 1) -> Codec:
    """A Codec for a checkpoint given by name or path; the other settings as `Codec` takes them."""
    return Codec(load_checkpoint(model), device, profile, tile_workers)
