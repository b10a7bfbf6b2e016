"""The walk over the coding steps: the one place where probabilities are decided, for encoder, decoder and estimator.

`walk` goes through the 11 steps once, in whatever arithmetic it is given. At each step it has the scales and means of the step's
latents and calls a *symbol port*, which exchanges them for symbols: the encoder's port quantises the true latents and codes
them, the decoder's reads them, the estimator's adds up likelihoods. Nothing else differs between the three.
Source: HPCM (arXiv 2507.19125), section 3; the steps are in `schedule.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from hpcm_codec.model import schedule
from hpcm_codec.model.planes import Planes, halves, joined
from hpcm_codec.model.schedule import Lattice, Scale

Array = Any  # a numpy array or a torch tensor; all those of one walk are of one kind
CodeStep = Callable[[Lattice, Array, Array], Array]  # (step, params, latents) → latents, as `Arithmetic.code`


class SymbolPort(Protocol):
    """One end of the entropy coder, as the walk sees it: the encoder's, the decoder's or the estimator's."""

    def begin(self, scale: Scale, number: int) -> None:
        """Called before each step, coarse to fine; number counts a scale's steps from 1."""

    def exchange(self, step: Lattice, sigma: Array, mean: Array) -> Array:
        """Code a step's latents; returns their symbols, B×n: the rounded differences of latents and means, packed as `step` packs them.

        sigma: B×n, of the distributions: from the walk in floating point their widths σ within [0.12, 64], from the walk in integers
               the indexes of their tables (uint8).
        mean:  B×n, floating point, in quantisation steps. A decoder does not need it.
        The symbols are whole numbers, int32 or of the means' type.
        """


class Arithmetic(Protocol):
    """What the walk computes with: the layers in floating point (`context`) or in integers (`engines.exact.network`).

    Planes are (…, C, h, w), tensors or numpy arrays. Scales are numbered 0, 1, 2 for s1, s2, s3; `step` counts a scale's steps that have an
    adaptor.
    """

    def no_latents(self, context: Array) -> Array:
        """A plane of M channels of zeros, as large as the context's."""

    def enter(self, scale: int, context: Array) -> Array:
        """The network between two scales, on the context brought to the finer one."""

    def parameters(self, scale: int, step: int, context: Array, latents: Array) -> Array:
        """Scales and means of a step's latents, from the context and the latents decoded so far."""

    @property
    def code(self) -> CodeStep:
        """(step, params, latents) → the latents with those of the step decoded."""

    def carry(self, scale: int, params: Array, context: Array) -> Array:
        """The context for the next step."""


def walk(arithmetic: Arithmetic, planes: Planes, begin: Callable[[Scale, int], None]) -> Array:
    """Go through all coding steps; returns the decoded latents (…, M, h, w).

    planes: the hyperprior's parameters on s1, s2 and s3 (see `planes.hyper_planes`); begin: `SymbolPort.begin`. What leads from one scale
    to the next belongs to the first step of the finer one.
    """
    context = planes[0]
    latents = arithmetic.no_latents(context)
    scales = schedule.scales(latents.shape[-3])
    for number, scale in enumerate(scales):
        begin(scale, 1)
        if number > 0:
            inside = scales[number - 1].inside
            assert inside is not None
            context = arithmetic.enter(number, _refine(inside, context, planes[number]))
            latents = inside.place(latents, arithmetic.no_latents(context))
        first = 1 if number == 0 else 0
        if first:
            # The very first step has its parameters from the hyperprior.
            latents = arithmetic.code(scale.steps[0], context, latents)
        for index, step in enumerate(scale.steps[first:]):
            if first + index > 0:
                begin(scale, first + index + 1)
            params = arithmetic.parameters(number, index, context, latents)
            latents = arithmetic.code(step, params, latents)
            if step is not scales[-1].steps[-1]:
                context = arithmetic.carry(number, params, context)
    return latents


def _refine(inside: Lattice, coarse: Array, fine: Array) -> Array:
    """Scatter a coarser context into the finer plane of parameters."""
    if fine.dtype != coarse.dtype:  # of tensors under autocast
        fine = fine.to(coarse.dtype)
    return joined(inside.place(halves(coarse), halves(fine)))
