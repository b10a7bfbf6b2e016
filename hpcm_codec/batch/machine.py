"""The device and limits of a batch, and the models that this process has loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcm_codec.batch.stopping import for_all_jobs
from hpcm_codec.constants import DEFAULT_MAX_PIXELS, DEFAULT_MODEL
from hpcm_codec.system.devices import has_cuda
from hpcm_codec.system.threads import set_threads

if TYPE_CHECKING:
    from hpcm_codec.bitstream.container import Header
    from hpcm_codec.codec import Codec


@dataclass(frozen=True)
class Machine:
    """device: "auto", "cpu", "cuda", "cuda:N"; threads: None is one for each core; memory: bytes a process may take, None is the
    default limit (`tiles.memory.default_limit`); tile_jobs: tiles of a picture that are coded at a time."""

    device: str = "auto"
    threads: int | None = None
    memory: int | None = None
    tile_jobs: int = 1

    @property
    def on_gpu(self) -> bool:
        """Whether models run on CUDA here."""
        if self.device != "auto":
            return self.device.startswith("cuda")
        return has_cuda()

    def codec(self, model: str | None, profile: str = "auto") -> Codec:
        """The codec of a model (None: the default one), loaded once. Raises BatchStopped."""
        from hpcm_codec.api import kept_codec

        set_threads(self.threads)
        with for_all_jobs():
            return self._set_up(kept_codec(model or DEFAULT_MODEL, self.device, profile))

    def codec_for(self, header: Header) -> Codec:
        """The codec that a file's header names, loaded once. Raises HpcmError if no checkpoint is known for it."""
        from hpcm_codec.api import codec_for

        set_threads(self.threads)
        return self._set_up(codec_for(header, None, self.device))

    def _set_up(self, codec: Codec) -> Codec:
        codec.tile_workers = self.tile_jobs
        return codec


def pixel_limit(max_pixels: int | None) -> int:
    """The number of pixels above which pictures are refused; None means the default."""
    return DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels
