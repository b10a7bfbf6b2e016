"""One tile's symbols: the walk over all of them in the file's profile, for an encoder's or a decoder's port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hpcm_codec.bitstream.container import Header
from hpcm_codec.engines.exact.network import ExactNetwork
from hpcm_codec.engines.graphs import CHECKED_USES, PLAIN_USES, Walk, graphs_for
from hpcm_codec.entropy.distributions import scale_index
from hpcm_codec.entropy.ports import CodingPort
from hpcm_codec.errors import HpcmError, UnsupportedError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.system.threads import ADVICE, after_fork

# The context model always runs on this many threads: matrix products sum in another order under another number of
# threads, and one last bit is enough to lose the range decoder. Transforms use as many threads as torch is set to.
CONTEXT_THREADS = 2


class TileCoder:
    """A model's walk over the symbols of a tile. On a GPU it is replayed from CUDA graphs (`graphs`), on the CPU it is plain code."""

    def __init__(self, model: HPCM, exact: ExactNetwork | None, device: torch.device) -> None:
        self._model, self._exact = model, exact
        self.graphs = graphs_for(device)

    @property
    def warm_up_uses(self) -> int:
        """After how many tiles of a size the next one shows how fast this is."""
        return 1 if self.graphs is None else PLAIN_USES + CHECKED_USES

    def decoded_latents(
        self, header: Header, rate: Tensor, port: CodingPort, code_hyper: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Walk over a tile's symbols in the file's profile; returns the decoded latents 1×M×h×w.

        rate:       level weights 1×L of the file's quality.
        code_hyper: exchanges table indexes and means (1×N×1×1) for the hyper-latents' symbols.
        Raises UnsupportedError for the exact profile where the model has none.
        """
        if not header.float_profile:
            if self._exact is None:
                raise UnsupportedError(
                    "made in the exact profile, which this model's checkpoint lacks",
                    advice="decode with the checkpoint it was made with",
                )
            position = self._exact.position(header.quality_code)
            symbols = code_hyper(*self._exact.hyper_distribution(position))
            return self._walked("exact", self._in_integers, port, symbols, position)
        with _context_threads():
            scale, mean = self._model.hyper_distribution(rate)
            symbols = code_hyper(scale_index(scale), mean)
            return self._walked("float", self._in_floating_point, port, symbols, rate)

    def _walked(self, profile: str, walk: Walk, port: CodingPort, symbols: Tensor, quality: Tensor) -> Tensor:
        if self.graphs is None:
            return walk(port, symbols, quality)
        return self.graphs.run((profile, symbols.shape), walk, port, symbols, quality)

    def _in_integers(self, port: CodingPort, symbols: Tensor, position: Tensor) -> Tensor:
        assert self._exact is not None
        return self._exact.code_latents(symbols, position, port)

    def _in_floating_point(self, port: CodingPort, symbols: Tensor, rate: Tensor) -> Tensor:
        _, mean = self._model.hyper_distribution(rate)
        return self._model.code_latents(symbols.to(mean.dtype) + mean, rate, port)


@contextmanager
def _context_threads() -> Iterator[None]:
    """What is computed in here is computed on CONTEXT_THREADS threads, whatever torch is set to. Raises HpcmError in a forked child."""
    if after_fork("cpu"):
        raise HpcmError("the float profile needs two threads, and a forked process has one", advice=ADVICE)
    before = torch.get_num_threads()
    torch.set_num_threads(CONTEXT_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
