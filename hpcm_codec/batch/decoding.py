"""Decodes one file of a batch: checks it before a model is loaded, writes its picture, and can examine a finished picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hpcm_codec.batch.jobs import Job
from hpcm_codec.batch.machine import Machine, pixel_limit
from hpcm_codec.batch.streams import STDIO, read_input, write_output
from hpcm_codec.batch.tasks import Outcome
from hpcm_codec.constants import FINEST_SCALE, SCALES
from hpcm_codec.errors import HpcmError, UsageError

if TYPE_CHECKING:
    from hpcm_codec.bitstream.container import Header, HpcmStream
    from hpcm_codec.images import Picture, StripPicture

MEMORY_ADVICE = "raise it with --memory, choose PNG, PPM or TIFF, which are written in strips, or decode a --region"


@dataclass(frozen=True)
class Decoding:
    """The settings for decoding every file of a batch (a `tasks.Work`).

    format:     a key of images.FORMATS in any case; None means by the output's extension, PNG on stdout.
    region:     x, y, width, height in pixels, or None. scale: one of constants.SCALES.
    partial:    decode the undamaged part of a damaged file.
    max_edge:   the most pixels of the longer side. Larger pictures are shrunk, decoded only to the scale that this needs. None: no limit.
    model:      a checkpoint's name or path; None means the one that the file names.
    max_pixels: larger pictures are refused, None is the default limit.
    """

    format: str | None = None
    region: tuple[int, int, int, int] | None = None
    scale: str = FINEST_SCALE
    partial: bool = False
    max_edge: int | None = None
    model: str | None = None
    max_pixels: int | None = None
    machine: Machine = field(default_factory=Machine)
    measures: tuple[str, ...] = ()
    lookahead: int = 1

    def settings(self) -> dict[str, Any]:
        return {
            "command": "decode",
            "format": self.format and self.format.lower(),
            "region": self.region and list(self.region),
            "scale": self.scale,
            "partial": self.partial,
            **({} if self.max_edge is None else {"max_edge": self.max_edge}),
            "model": self.model,
        }

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Does nothing."""

    def __call__(self, job: Job, overwrite: bool) -> Outcome:
        data = read_input(job.source, begins=refuse_other_kinds)
        # errors of the file or the region, and too much memory, are reported before a model is loaded
        stream = self._parsed(data)
        self._check_memory(stream, len(data), job)
        header = stream.header
        codec = self.machine.codec_for(header) if self.model is None else self.machine.codec(self.model)
        picture = codec.decode_parsed(stream, self.region)
        written: Picture | StripPicture = picture
        if self.max_edge is not None:
            from hpcm_codec.images.resizing import thumbnail

            written = thumbnail(picture, self.max_edge)
        notices = self._write(written, job, overwrite)
        pixels = header.width * header.height
        return _outcome(written.width, written.height, len(data), pixels, (*picture.notices, *notices))

    def inspect(self, job: Job) -> Outcome:
        from hpcm_codec.images import format_for
        from hpcm_codec.images.reading import identified, opened, pillow_errors_as_file_errors

        data = read_input(job.source, begins=refuse_other_kinds)
        header = self._parsed(data).header
        size = self._size(header)
        with (
            opened(job.target, job.target) as file,
            pillow_errors_as_file_errors(job.target),
            identified(file, job.target, pixel_limit(self.max_pixels)) as written,
        ):
            found, format = written.image.size, written.image.format
        if found != size:
            raise HpcmError(f"it is a picture of {found[0]}×{found[1]} pixels, not {size[0]}×{size[1]}")
        if format != (wanted := (self.format or format_for(job.target)).upper()):
            raise HpcmError(f"it is {format}, not {wanted}")
        return _outcome(*size, len(data), header.width * header.height)

    def _parsed(self, data: bytes) -> HpcmStream:
        from hpcm_codec.bitstream.container import parse_header, parse_stream

        limit = pixel_limit(self.max_pixels)
        scale = self._scale_for(parse_header(data, limit))
        stream = parse_stream(data, max_pixels=limit, allow_truncated=self.partial, scale=scale)
        if self.region is not None:
            stream.header.grid.region(*self.region)
        return stream

    def _size(self, header: Header) -> tuple[int, int]:
        """Width and height of the picture that is written."""
        size = (header.width, header.height) if self.region is None else self.region[2:]
        if self.max_edge is None:
            return size
        from hpcm_codec.images.resizing import fitted

        return fitted(*size, self.max_edge)

    def _scale_for(self, header: Header) -> str:
        """The finest scale to decode: the requested one, or a coarser one if that is enough for a thumbnail."""
        if self.max_edge is None:
            return self.scale
        from hpcm_codec.images.resizing import scale_for

        shown = (header.width, header.height) if self.region is None else self.region[2:]
        return min(self.scale, scale_for(max(shown) / self.max_edge, SCALES), key=SCALES.index)

    def _check_memory(self, stream: HpcmStream, file_bytes: int, job: Job) -> None:
        """Raise MemoryLimitError when decoding and writing the picture would take more than the limit."""
        from hpcm_codec.bitstream.container import ALPHA, EXIF
        from hpcm_codec.images import format_for, held_bytes
        from hpcm_codec.tiles.memory import check, decoding_bytes

        header, extensions = stream.header, stream.extensions
        width, height = (header.width, header.height) if self.region is None else self.region[2:]
        to_stdout, result = job.target == STDIO, self._size(header)
        format = self.format.upper() if self.format is not None else "PNG" if to_stdout else format_for(job.target)
        held = held_bytes(format, *result, alpha=ALPHA in extensions, exif=EXIF in extensions, to_stdout=to_stdout)
        if ALPHA in extensions:  # the plane is a picture of its own, decoded whole
            held += (3 if self.max_edge is None else 8) * header.width * header.height
        needed = decoding_bytes(width, height, held + 2 * file_bytes, self.machine.tile_jobs)
        check(f"decoding {width}×{height} pixels to {format}", needed, self.machine.memory, MEMORY_ADVICE)

    def _write(self, picture: Picture | StripPicture, job: Job, overwrite: bool) -> tuple[str, ...]:
        """Write the picture to the job's output; returns notices about data that the format cannot store."""
        from hpcm_codec.images import write_picture

        format = None if self.format is None else self.format.upper()
        if job.target != STDIO:
            return write_picture(picture, job.target, format, overwrite=overwrite)
        buffer = io.BytesIO()
        notices = write_picture(picture, buffer, format or "PNG")
        write_output(job.target, buffer.getvalue(), overwrite)
        return notices


def _outcome(width: int, height: int, file_bytes: int, pixels: int, notices: Sequence[str] = ()) -> Outcome:
    bpp = 8 * file_bytes / pixels  # of the whole picture, as the bytes are
    return Outcome(
        f"{width}×{height} from {file_bytes} bytes, {bpp:.3f} bpp",
        {"width": width, "height": height, "input_bytes": file_bytes, "bpp": round(bpp, 5)},
        notices,
    )


def refuse_other_kinds(first_bytes: bytes) -> None:
    """Raise for a file that is no .hpcm file, before all of it is read."""
    from hpcm_codec.bitstream.container import MAGIC, parse_header

    if not first_bytes.startswith(MAGIC):
        parse_header(first_bytes)
        raise UsageError("not a .hpcm file")  # not reached: parse_header raises for such data
