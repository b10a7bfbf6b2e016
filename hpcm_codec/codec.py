"""Codec: the whole staircase, image → latents → symbols → bytes and back, readable top to bottom.

A picture is analysed tile by tile (each with a halo, so that tiles leave no seams), every tile's latents are coded by
the context model into four streams, and the container takes the streams. Decoding walks the same steps backwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcm_codec import container
from hpcm_codec.checkpoints import DEFAULT_MODEL, Checkpoint, load_checkpoint
from hpcm_codec.container import DEFAULT_MAX_PIXELS, Header, HpcmStream, TileStreams
from hpcm_codec.entropy.distributions import scale_index
from hpcm_codec.entropy.ports import DecoderPort, EncoderPort
from hpcm_codec.entropy.range_coder import CoderTables
from hpcm_codec.errors import CorruptStreamError, UnsupportedError, UsageError
from hpcm_codec.images import Picture, decode_alpha, encode_alpha
from hpcm_codec.model.rate import HIGHEST_QUALITY, quality_to_position
from hpcm_codec.tiling import LATENTS_PER_UNIT, PIXELS_PER_LATENT, PIXELS_PER_UNIT, Tile, TileGrid, Window

DEFAULT_QUALITY = 50.0
# Latents around a tile that the transforms can see: four 3×3 convolutions at 1/8 and one at 1/16, rounded up.
HALO_LATENTS = 4
# The context model always runs on this many threads: matrix products sum in another order under another number of
# threads, and one last bit is enough to lose the range decoder. Transforms use as many threads as torch is set to.
CONTEXT_THREADS = 2


@dataclass(frozen=True)
class Encoded:
    """data: the file's bytes; latents: what a decoder will decode, 1×M×h×w, for `Codec.reconstruct`."""

    data: bytes
    latents: Tensor


class Codec:
    """A loaded model that encodes and decodes pictures. Use one for many pictures: loading is the slow part.

    device:  "cpu", "cuda", or "auto" for CUDA where there is one.
    profile: how files are encoded: "exact" (probabilities in integers: they decode on every machine), "float", or "auto" for exact
             where the checkpoint has it. Decoding follows the file.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "auto", profile: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError("this machine has no CUDA device that torch can use", advice="use --device cpu")
        self.device = torch.device(device)
        self.identity = checkpoint.identity
        self.config = checkpoint.config
        model = checkpoint.build_model()
        exact = checkpoint.build_exact(model)
        self.exact = None if exact is None else exact.to(self.device)
        if profile == "exact" and exact is None:
            raise UnsupportedError(
                "this model has no exact profile", advice="add one with `hpcm checkpoints export --exact`"
            )
        self.profile = ("float" if exact is None else "exact") if profile == "auto" else profile
        self.model = model.to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._tables = CoderTables(checkpoint.tables)

    # -- image → bytes ------------------------------------------------------------------------------------------

    def encode(self, picture: Picture, quality: float = DEFAULT_QUALITY) -> bytes:
        """The picture as a .hpcm file's bytes. quality: 0 (smallest) to 100, in half steps."""
        return self.encode_with_latents(picture, quality).data

    def encode_with_latents(self, picture: Picture, quality: float = DEFAULT_QUALITY) -> Encoded:
        """Encode, and keep the decoded latents; raises UsageError for a quality outside 0 .. 100."""
        if not 0 <= quality <= HIGHEST_QUALITY:
            raise UsageError(f"quality {quality:g} is not between 0 and {HIGHEST_QUALITY:g}")
        return self.encode_analysed(picture, self.analyse(picture), quality)

    @torch.inference_mode()
    def analyse(self, picture: Picture) -> Tensor:
        """The picture's latents before rounding, 1×M×h×w: the same for every quality."""
        grid = TileGrid(picture.width, picture.height)
        latents = self._new_latents(grid)
        for tile in grid:
            window = tile.with_halo(HALO_LATENTS)
            inner = _inner(self.model.analyse(self._to_tensor(picture.pixels, window)), window, tile)
            latents[(..., *tile.latents.slices)] = inner
        return latents

    @torch.inference_mode()
    def encode_analysed(self, picture: Picture, analysed: Tensor, quality: float) -> Encoded:
        """Encode a picture (quality 0 .. 100) whose latents `analyse` has given."""
        header = Header(
            picture.width,
            picture.height,
            round(2 * quality),
            self.identity,
            grey=picture.grey,
            float_profile=self.profile == "float",
        )
        decoded, tiles = torch.empty_like(analysed), []
        for tile in header.grid:
            streams, decoded_tile = self._encode_tile(analysed[(..., *tile.latents.slices)], header)
            tiles.append(streams)
            decoded[(..., *tile.latents.slices)] = decoded_tile
        data = container.write_stream(HpcmStream(header, tuple(tiles), _extensions_of(picture)))
        return Encoded(data, decoded)

    def _encode_tile(self, latents: Tensor, header: Header) -> tuple[TileStreams, Tensor]:
        rate = self._rate(header)
        port = EncoderPort(latents * self._latent_gain(header, rate), self._tables)
        hyper = self.model.hyper_latents(latents, rate)
        decoded = self._walk(header, port, lambda levels, mean: port.code_hyper(hyper, levels, mean))
        return TileStreams(**port.streams(), symbol_check=port.symbol_check), decoded

    def _latent_gain(self, header: Header, rate: Tensor) -> Tensor | float:
        """Quantisation steps per unit of latent, 1×M×1×1, in the file's profile."""
        if self.exact is not None and not header.float_profile:
            return self.exact.latent_gain(header.quality_code)
        log_gain = self.model.latent_log_gain(rate)
        return 1.0 if log_gain is None else log_gain.exp()

    def _walk(
        self, header: Header, port: EncoderPort | DecoderPort, code_hyper: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The walk over a tile's symbols, encoder's or decoder's, in the file's profile; returns the decoded latents 1×M×h×w.

        code_hyper: exchanges table indexes and means (1×N×1×1) for the hyper-latents' symbols.
        """
        if not header.float_profile:
            if self.exact is None:
                raise UnsupportedError(
                    "made in the exact profile, which this model's checkpoint lacks",
                    advice="decode with the checkpoint it was made with",
                )
            levels, mean = self.exact.hyper_distribution(header.quality_code)
            return self.exact.code_latents(code_hyper(levels, mean), header.quality_code, port)
        with _context_threads():
            rate = self._rate(header)
            scale, mean = self.model.hyper_distribution(rate)
            hyper = code_hyper(scale_index(scale), mean).to(mean.dtype) + mean
            return self.model.code_latents(hyper, rate, port)

    # -- bytes → image ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, partial: bool = False) -> Picture:
        """The picture of a .hpcm file.

        partial: make the best of a file that was cut short or damaged; notices say what is missing. What has not
                 arrived of a tile's scales takes the values that the model predicts.
        Raises CorruptStreamError for damaged data, UnsupportedError for another model's file or a newer format.
        """
        stream = self._parse(data, max_pixels, partial)
        header = stream.header
        alpha = stream.extensions.get(container.ALPHA)
        decoded_alpha = None if alpha is None else decode_alpha(alpha, header.width, header.height)
        latents = self._new_latents(header.grid)
        for tile, streams in zip(header.grid, stream.tiles, strict=True):
            latents[(..., *tile.latents.slices)] = self._decode_tile(tile, streams, header)
        return Picture(
            pixels=self.reconstruct(latents, header),
            alpha=decoded_alpha,
            icc=stream.extensions.get(container.ICC),
            exif=stream.extensions.get(container.EXIF),
            xmp=stream.extensions.get(container.XMP),
            notices=tuple(f"shown in part: {problem}" for problem in stream.problems),
        )

    @torch.inference_mode()
    def symbol_digest(self, data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> str:
        """SHA-256 (hexadecimal) over all symbols of a file, int32 little-endian in coding order: what two machines must agree on.

        Raises as `decode`.
        """
        digest = hashlib.sha256()
        stream = self._parse(data, max_pixels, partial=False)
        for tile, streams in zip(stream.header.grid, stream.tiles, strict=True):
            self._decode_tile(
                tile, streams, stream.header, lambda symbols: digest.update(symbols.astype("<i4").tobytes())
            )
        return digest.hexdigest()

    def _parse(self, data: bytes, max_pixels: int, partial: bool) -> HpcmStream:
        """The parts of a file that this model has made; raises as `decode`."""
        stream = container.parse_stream(data, max_pixels=max_pixels, allow_truncated=partial)
        self._refuse_too_large(stream.header, max_pixels)
        made_with = stream.header.checkpoint_id
        if made_with != self.identity:
            raise UnsupportedError(
                f"made with the model {made_with.hex()}, but the one loaded is {self.identity.hex()}",
                advice="decode with --model naming the checkpoint it was made with",
            )
        return stream

    def _decode_tile(
        self,
        tile: Tile,
        streams: TileStreams,
        header: Header,
        record: Callable[[NDArray[np.int32]], None] | None = None,
    ) -> Tensor:
        payloads = dict(zip(container.SCALES, streams.payloads, strict=True))
        port = DecoderPort(payloads, self._tables, self.device, record)
        height, width = (side // LATENTS_PER_UNIT for side in (tile.latents.height, tile.latents.width))
        shape = (1, self.config.hyper_channels, height, width)
        decoded = self._walk(header, port, lambda levels, _: port.code_hyper(shape, levels))
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

    @torch.inference_mode()
    def reconstruct(self, latents: Tensor, header: Header) -> NDArray[np.uint8]:
        """Pixels H×W×3 (grey: H×W×1) of decoded latents 1×M×h×w: the one way from latents to pixels."""
        rate = self._rate(header)
        pixels = np.empty((header.height, header.width, 1 if header.grey else 3), np.uint8)
        for tile in header.grid:
            window = tile.with_halo(HALO_LATENTS)
            image = self.model.synthesise(latents[(..., *window.latents.slices)], rate)
            visible = tile.visible_pixels
            top = window.row_offset * PIXELS_PER_LATENT
            left = window.column_offset * PIXELS_PER_LATENT
            image = image[0, :, top : top + visible.height, left : left + visible.width]
            if header.grey:
                image = image.mean(dim=0, keepdim=True)
            image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
            pixels[visible.slices] = image.permute(1, 2, 0).cpu().numpy()
        return pixels

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

    def _rate(self, header: Header) -> Tensor:
        return self.model.rate_at(quality_to_position(header.quality, self.config.rate_levels))

    def _new_latents(self, grid: TileGrid) -> Tensor:
        shape = (1, self.config.latent_channels, grid.latents.height, grid.latents.width)
        return torch.empty(shape, device=self.device).contiguous(memory_format=torch.channels_last)

    def _to_tensor(self, pixels: NDArray[np.uint8], window: Window) -> Tensor:
        """The window's pixels, 1×3×h×w in [0, 1]; what lies beyond the picture repeats its last row and column."""
        area = window.pixels
        rows = np.minimum(np.arange(area.top, area.bottom), pixels.shape[0] - 1)
        columns = np.minimum(np.arange(area.left, area.right), pixels.shape[1] - 1)
        part = torch.from_numpy(pixels[rows[:, None], columns[None, :]]).to(self.device)
        return part.permute(2, 0, 1)[None].expand(-1, 3, -1, -1).float().div(255)


@contextmanager
def _context_threads() -> Iterator[None]:
    """What is computed in here is computed on CONTEXT_THREADS threads, whatever torch is set to."""
    before = torch.get_num_threads()
    torch.set_num_threads(CONTEXT_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _inner(latents: Tensor, window: Window, tile: Tile) -> Tensor:
    """The tile's own latents out of its window's."""
    top, left = window.row_offset, window.column_offset
    return latents[..., top : top + tile.latents.height, left : left + tile.latents.width]


def _extensions_of(picture: Picture) -> dict[int, bytes]:
    """The picture's alpha and metadata as extension chunks."""
    alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
    parts = {
        container.ALPHA: alpha,
        container.ICC: picture.icc,
        container.EXIF: picture.exif,
        container.XMP: picture.xmp,
    }
    return {kind: payload for kind, payload in parts.items() if payload is not None}


def load_codec(model: str = DEFAULT_MODEL, device: str = "auto", profile: str = "auto") -> Codec:
    """A Codec for a checkpoint given by name or path; device and profile as `Codec` takes them."""
    return Codec(load_checkpoint(model), device, profile)
