"""Encodes one picture of a batch: opens it, encodes it to its target and writes the file; can examine a finished file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hpcm_codec.batch.jobs import Job
from hpcm_codec.batch.machine import Machine, pixel_limit
from hpcm_codec.batch.streams import STDIO, read_input, shown, write_output
from hpcm_codec.batch.tasks import Outcome
from hpcm_codec.bitstream.quality import quality_code, quality_of
from hpcm_codec.errors import HpcmError, UsageError, printable
from hpcm_codec.targets import Target, encode_to_target

if TYPE_CHECKING:
    from hpcm_codec.batch.together import Analysed
    from hpcm_codec.bitstream.container import HpcmStream
    from hpcm_codec.codec import Codec
    from hpcm_codec.images import PixelSource
    from hpcm_codec.images.resizing import Resizing

MEMORY_ADVICE = "raise it with --memory, or give the picture as PPM or uncompressed TIFF, which are read in strips"
PSNR_DIGITS = 3
RESIZING = 8  # bytes a pixel, of Pillow's image and of the samples


@dataclass(frozen=True)
class Encoding:
    """The settings for encoding every picture of a batch (a `tasks.Work`).

    model:        a checkpoint's name or path, None for the default. profile: "exact", "float" or "auto".
    strip:        leave out EXIF, XMP, IPTC, resolution and texts. max_pixels: larger pictures are refused, None is the default limit.
    measure_psnr: decode every file, and report its PSNR.
    resizing:     how the picture's size is changed before it is coded, or None.
    keep_smaller: copy the input instead if the encoded file would have more bytes.
    """

    target: Target = field(default_factory=Target)
    model: str | None = None
    profile: str = "auto"
    strip: bool = False
    max_pixels: int | None = None
    measure_psnr: bool = False
    resizing: Resizing | None = None
    keep_smaller: bool = False
    machine: Machine = field(default_factory=Machine)
    _analysed: dict[str, Analysed] = field(default_factory=dict, compare=False, repr=False)

    @property
    def measures(self) -> tuple[str, ...]:
        return ("psnr",) if self.measure_psnr else ()

    @property
    def lookahead(self) -> int:
        from hpcm_codec.batch.together import LOOKAHEAD

        return LOOKAHEAD if self.target.kind == "quality" and self.machine.on_gpu else 1

    def settings(self) -> dict[str, Any]:
        codec = self._codec()
        limit = {"bytes": "target_size", "bpp": "target_bpp", "psnr": "target_psnr"}.get(self.target.kind)
        return {
            "command": "encode",
            "quality": self.target.stored_quality(codec),
            **({} if limit is None else {limit: self.target.value}),
            "strip": self.strip,
            "model": codec.identity.hex(),
            "profile": codec.profile,
            **({} if self.resizing is None else {"resize": asdict(self.resizing)}),
            **({"keep_smaller": True} if self.keep_smaller else {}),
        }

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Analyse pictures of equal size at once. Pictures that cannot be opened are left out; encoding them reports the error."""
        from hpcm_codec.batch.together import analyse_together

        self._analysed.clear()
        if self.target.kind == "quality":
            codec = self._codec().at(self.target.value)
            sources = [job.source for job in jobs if not job.unreadable]
            self._analysed.update(analyse_together(codec, sources, self.opened))

    def __call__(self, job: Job, overwrite: bool) -> Outcome:
        if (analysed := self._analysed.pop(job.source, None)) is not None:
            codec = self._codec().at(self.target.value)  # `prepare`: the target is a quality
            quality = codec.nearest_quality(self.target.value)
            data = codec.bytes_of_analysed(analysed.picture, analysed.latents, quality)
            if self._is_better_kept(analysed.input_bytes, data):
                return self._copied(job, analysed.picture, analysed.input_bytes, data, overwrite)
            write_output(job.target, data, overwrite)
            return self._outcome(codec, analysed.picture, analysed.input_bytes, data, quality)
        with self.opened(job.source) as (picture, input_bytes):
            codec = self._codec()
            reached = encode_to_target(codec, picture, self.target)
            if self._is_better_kept(input_bytes, reached.data):
                return self._copied(job, picture, input_bytes, reached.data, overwrite)
            write_output(job.target, reached.data, overwrite)
            return self._outcome(codec, picture, input_bytes, reached.data, reached.quality, reached.psnr)

    def _is_better_kept(self, input_bytes: int, data: bytes) -> bool:
        return self.keep_smaller and len(data) > input_bytes

    def _copied(self, job: Job, picture: PixelSource, input_bytes: int, data: bytes, overwrite: bool) -> Outcome:
        """Copies the input unchanged into the output's folder, under its own name, instead of the encoded file."""
        target = os.path.join(os.path.dirname(job.target), os.path.basename(job.source))
        if not os.path.exists(target) or not os.path.samefile(job.source, target):
            content = read_input(job.source)
            if not os.path.isfile(target) or read_input(target) != content:
                write_output(target, content, overwrite)
        if overwrite and os.path.isfile(job.target):
            os.unlink(job.target)  # of an earlier run
        size = f"{picture.width}×{picture.height}"
        share = f"{len(data)} bytes would be {100 * len(data) / input_bytes:.1f}% of the input"
        facts = {"width": picture.width, "height": picture.height, "bytes": input_bytes, "input_bytes": input_bytes}
        return Outcome(
            f"{size}, copied as {printable(target)}: {share}", {**facts, "copied": target}, picture.notices, target
        )

    def inspect(self, job: Job) -> Outcome:
        from hpcm_codec.bitstream.container import parse_stream
        from hpcm_codec.extensions import payloads_of

        codec = self._codec()
        data = read_input(job.target)
        stream = parse_stream(data, max_pixels=pixel_limit(self.max_pixels))
        header, wanted = stream.header, self.target.stored_quality(codec)
        with self.opened(job.source) as (picture, input_bytes):
            for differs, reason in (
                (
                    header.checkpoint_id != codec.identity_at(header.quality),
                    f"it is of another model, {header.checkpoint_id.hex()}",
                ),
                (header.profile != codec.profile, "it is of the other profile"),
                (
                    (header.width, header.height) != (picture.width, picture.height),
                    f"it is of a picture of {header.width}×{header.height} pixels",
                ),
                (
                    _metadata_of(stream) != (picture.exif, picture.xmp, payloads_of(picture.extras)),
                    "it has other metadata",
                ),
                (
                    wanted is not None and header.quality != wanted,
                    f"it is of quality {header.quality:g}, not {wanted}",
                ),
                (
                    len(data) > (self.target.most_bytes(picture.width * picture.height) or len(data)),
                    "it is larger than asked for",
                ),
            ):
                if differs:
                    raise HpcmError(reason)
            reached = None
            if self.target.kind == "psnr" and (reached := _psnr_of(codec, picture, stream)) < self.target.value:
                raise HpcmError(f"it has {reached:.2f} dB, fewer than asked for")
            return self._outcome(codec, picture, input_bytes, data, header.quality, reached, stream)

    @contextmanager
    def opened(self, source: str) -> Iterator[tuple[PixelSource, int]]:
        """The picture as it is to be encoded, and how many bytes its file has. Raises FileError, MemoryLimitError."""
        from hpcm_codec.images import Extras, open_picture
        from hpcm_codec.tiles.memory import check, encoding_bytes

        # input that cannot be read twice is kept in memory
        data = None if source != STDIO and os.path.isfile(source) else read_input(source)

        def afford(width: int, height: int, held: int) -> None:
            kept, tiles = self.target.kept_latents, self.machine.tile_jobs
            if self.resizing is not None:  # one picture is held beside the other
                width, height, held = *self.resizing.size(width, height), held + RESIZING * width * height
                held += RESIZING * width * height
            needed = encoding_bytes(width, height, held + len(data or b""), kept, tiles)
            check(f"encoding {width}×{height} pixels", needed, self.machine.memory, MEMORY_ADVICE)

        name = shown(source, "stdin")
        content = source if data is None else io.BytesIO(data)
        with open_picture(content, name=name, max_pixels=pixel_limit(self.max_pixels), afford=afford) as picture:
            if self.strip:
                picture.exif = picture.xmp = None
                picture.extras = Extras()
            size = None if self.resizing is None else self.resizing.size(picture.width, picture.height)
            taken = picture if size in (None, (picture.width, picture.height)) else self._resized(picture, size)
            yield taken, max(1, os.path.getsize(source) if data is None else len(data))

    def _resized(self, picture: PixelSource, size: tuple[int, int]) -> PixelSource:
        from hpcm_codec.images.resizing import resized

        if size[0] * size[1] > (limit := pixel_limit(self.max_pixels)):
            raise UsageError(f"would have {size[0]}×{size[1]} pixels, above the limit of {limit}")
        return resized(picture, size)

    def _codec(self) -> Codec:
        return self.machine.codec(self.model, self.profile)

    def _outcome(
        self,
        codec: Codec,
        picture: PixelSource,
        input_bytes: int,
        data: bytes,
        quality: float,
        psnr: float | None = None,
        stream: HpcmStream | None = None,
    ) -> Outcome:
        """stream: of the file, if it has been parsed already."""
        from hpcm_codec.bitstream.container import parse_stream

        if psnr is None and self.measure_psnr:
            psnr = _psnr_of(codec, picture, stream or parse_stream(data, max_pixels=pixel_limit(self.max_pixels)))
        rate, ratio = 8 * len(data) / (picture.width * picture.height), len(data) / input_bytes
        found = {} if psnr is None else {"psnr": round(psnr, PSNR_DIGITS)}
        as_asked = self.target.kind == "quality" and quality == quality_of(quality_code(self.target.value))
        shown_facts = found if as_asked else {"quality": quality, **found}
        return Outcome(
            f"{picture.width}×{picture.height}, {len(data)} bytes, {rate:.3f} bpp, {100 * ratio:.1f}% of the input"
            + "".join(f", {key} {value:g}" for key, value in shown_facts.items()),
            {
                "width": picture.width,
                "height": picture.height,
                "quality": quality,
                **found,
                "bytes": len(data),
                "input_bytes": input_bytes,
                "bpp": round(rate, 5),
                "ratio": round(ratio, 5),
                "model": codec.identity_at(quality).hex(),
                "profile": codec.profile,
            },
            picture.notices,
        )


def _psnr_of(codec: Codec, picture: PixelSource, stream: HpcmStream) -> float:
    from hpcm_codec.images.fidelity import psnr_of_strips

    return psnr_of_strips(picture, codec.decode_parsed(stream).strips)


def _metadata_of(stream: HpcmStream) -> tuple[bytes | None, bytes | None, dict[int, bytes]]:
    """EXIF, XMP and the payloads of the extras."""
    from hpcm_codec.bitstream.container import EXIF, IPTC, RESOLUTION, TEXTS, XMP

    found = stream.extensions
    return found.get(EXIF), found.get(XMP), {kind: found[kind] for kind in (IPTC, RESOLUTION, TEXTS) if kind in found}
