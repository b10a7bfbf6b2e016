"""Families made of published checkpoints, and exported for shipping.

The order of the members is found, not taken from the order or the names of the files: every model codes a picture that is built in, in
simulation, and its likelihoods say at which rate. The published rates lie a factor of almost two apart, so any picture tells them apart.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from hpcm_codec.engines.exporting import export_loaded, import_published
from hpcm_codec.entropy.distributions import build_tables
from hpcm_codec.errors import UnsupportedError, UsageError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.system.files import file_error
from hpcm_codec.weights.checkpoints import Checkpoint, identity_of, with_tensors
from hpcm_codec.weights.families import MOST_MEMBERS, Family, write_family
from hpcm_codec.weights.published import read_published
from hpcm_codec.weights.stored import read_member

PICTURE_EDGE = 128
CLOSEST_RATES = 1.01  # rates nearer to each other than this factor have no order


@dataclass(frozen=True)
class Examined:
    """A published file: its network's name, the identity of its weights, and what the picture takes: bits per pixel, and dB of PSNR."""

    source: Path
    kind: str
    weights: bytes
    rate: float
    fidelity: float


def import_family(
    sources: Sequence[Path], target: Path, calibration: Sequence[Tensor] | None = None
) -> tuple[Family, list[Examined]]:
    """Write published checkpoints of one network as a family, ordered by their rates; returns it, and the files in this order.

    calibration: as of `import_published`, for every member. One member at a time is held in memory.
    Raises FileError and UnsupportedError as `import_published`, and for files of different networks, equal weights or equal rates.
    """
    if not 2 <= len(sources) <= MOST_MEMBERS:
        raise UsageError(f"a family has 2 to {MOST_MEMBERS} rates, not {len(sources)}")
    found: list[Examined] = []
    for source in sources:
        found.append(_examined(source))
        _refuse_another_kind(found)
    found.sort(key=lambda one: one.rate)
    _refuse_equal_rates(found)
    with _temporary(target) as folder:
        members = []
        for number, one in enumerate(found):
            file = folder / str(number)
            _, identity = import_published(one.source, file, calibration)
            members.append((file, identity, one.rate))
        return write_family(target, members), found


def export_family(
    family: Family, target: Path, dtype: torch.dtype, calibration: Sequence[Tensor] | None, packed_bits: int | None
) -> Family:
    """Copy a family with every member exported as `export_checkpoint` does; returns the new one. Raises as it."""
    with _temporary(target) as folder:
        members = []
        for number, member in enumerate(family.members):
            file = folder / str(number)
            checkpoint = with_tensors(read_member(family, number))
            identity = export_loaded(checkpoint, str(family.path), file, dtype, calibration, packed_bits)
            members.append((file, identity, member.rate))
        return write_family(target, members)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A folder beside the target, for members that are copied into it later; removed at the end."""
    try:
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=".hpcm-family-")
    except OSError as error:
        raise file_error(target, error) from error
    with folder as name:
        yield Path(name)


def _examined(source: Path) -> Examined:
    published = read_published(source)
    checkpoint = Checkpoint(published.config, published.weights, build_tables(), b"", published.record)
    rate, fidelity = measured(checkpoint.build_model())
    if not math.isfinite(rate):
        raise UnsupportedError("it does not code a picture: its likelihoods are no numbers", file=source)
    return Examined(source, published.record["imported"], identity_of(published.weights), rate, fidelity)


def _refuse_another_kind(found: Sequence[Examined]) -> None:
    """Raise UnsupportedError unless the last file is of the network of the others, and has other weights."""
    *others, last = found
    for other in others:
        if other.kind != last.kind:
            reason = f"{last.kind}, while {other.source} is {other.kind}: a family is of one network"
            raise UnsupportedError(reason, file=last.source, advice="import each network into a family of its own")
        if other.weights == last.weights:
            reason = f"it holds the same weights as {other.source}"
            raise UnsupportedError(reason, file=last.source, advice="give every rate once")


def _refuse_equal_rates(found: Sequence[Examined]) -> None:
    """Raise UnsupportedError for rates, in rising order, that are too near to each other to have an order."""
    for lower, higher in pairwise(found):
        if higher.rate < CLOSEST_RATES * lower.rate:
            reason = f"it has the rate of {lower.source}, {lower.rate:.4f} bits per pixel: neither is the higher one"
            raise UnsupportedError(reason, file=higher.source, advice="leave one of them out")


def measured(model: HPCM, position: float = 0.0) -> tuple[float, float]:
    """Bits per pixel by the likelihoods, and dB of PSNR, of the built-in picture.

    model: in evaluation mode; position: of its rate, 0 in a model of a fixed rate.
    """
    picture = built_in_picture()
    with torch.inference_mode():
        found = model(picture, position)
        bits = sum(-likelihood.double().log2().sum().item() for likelihood in found["likelihoods"].values())
        error = (found["x_hat"].clamp(0, 1) - picture).square().double().mean().item()
    return bits / PICTURE_EDGE**2, -10 * math.log10(max(error, 1e-12))


@cache
def built_in_picture() -> Tensor:
    """1×3×128×128 in [0, 1], the same on every machine: noise with the spectrum of photographs, its three colours much alike."""
    generator = torch.Generator().manual_seed(0)
    resized = partial(functional.interpolate, size=(PICTURE_EDGE, PICTURE_EDGE), mode="bicubic", align_corners=False)
    planes = torch.zeros(1, 4, PICTURE_EDGE, PICTURE_EDGE)
    edge = 2
    while edge <= PICTURE_EDGE:  # an octave each, weaker the finer it is
        planes += resized(torch.rand(1, 4, edge, edge, generator=generator) - 0.5) * (2 / edge) ** 0.8
        edge *= 2
    grey, colour = planes[:, :1], planes[:, 1:]
    return (0.5 + 0.5 * grey + 0.15 * colour).clamp(0, 1)


def out_of_order(found: Sequence[Examined]) -> list[str]:
    """A line for each file of a higher rate and a lower PSNR than the one before it: they are hardly of one curve."""
    return [
        f"{higher.source} takes more bits than {lower.source} and is {lower.fidelity - higher.fidelity:.2f} dB worse: "
        "are both trained for the same measure?"
        for lower, higher in pairwise(found)
        if higher.fidelity < lower.fidelity
    ]
