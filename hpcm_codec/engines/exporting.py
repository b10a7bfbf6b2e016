"""Checkpoints for shipping: weights in a smaller type, and the exact profile's units found with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hpcm_codec.engines.exact.balance import balance
from hpcm_codec.engines.exact.export import calibrate
from hpcm_codec.engines.loading import exact_network
from hpcm_codec.entropy.distributions import build_tables as build_coder_tables
from hpcm_codec.entropy.sigmas import sigma_borders
from hpcm_codec.errors import FileError, UnsupportedError, listed
from hpcm_codec.ops.integer_tables import StoredFunctions, build_functions
from hpcm_codec.weights.checkpoints import Checkpoint, ExactData, load_checkpoint, not_finite, save_checkpoint
from hpcm_codec.weights.packing import pack_all, unpack_all
from hpcm_codec.weights.published import read_published


def export_checkpoint(
    source: str,
    target: Path,
    dtype: torch.dtype = torch.float16,
    calibration: Sequence[Tensor] | None = None,
    *,
    packed_bits: int | None = None,
) -> bytes:
    """Copy a checkpoint with its weights rounded to `dtype`, for shipping; returns the new identity.

    The model then runs on the rounded values everywhere, so encoder and decoder still agree.

    packed_bits: 9 to 12: matrices are rounded to so many bits and stored so (see `weights.packing`), everything else as float16.
    calibration: pictures (1×3×H×W in [0, 1], sides multiples of 64) that find the units of the exact profile; the checkpoint then has one,
                 its priors are rescaled first (`engines.exact.balance`), and its weights are float16. None leaves the exact profile out.
    Raises UnsupportedError when weights do not fit `dtype`, or the exact profile's integers, FileError when they are not finite.
    """
    return export_loaded(load_checkpoint(source), source, target, dtype, calibration, packed_bits)


def import_published(source: Path, target: Path, calibration: Sequence[Tensor] | None = None) -> tuple[str, bytes]:
    """Write a published HPCM checkpoint as one of ours, its weights in the types they have; returns the network's name and the identity.

    calibration: the pictures of `export_checkpoint`, for an exact profile (and float16 weights); None leaves it out.
    Raises FileError for what cannot be read, UnsupportedError for other networks, and for weights that do not fit the integers.
    """
    published = read_published(source)
    kind = published.record["imported"]
    if calibration is None:
        return kind, save_checkpoint(target, published.config, published.weights, published.record)
    checkpoint = Checkpoint(published.config, published.weights, build_coder_tables(), b"", published.record)
    return kind, export_loaded(checkpoint, str(source), target, torch.float16, calibration, None)


def export_loaded(
    checkpoint: Checkpoint,
    source: str,
    target: Path,
    dtype: torch.dtype,
    calibration: Sequence[Tensor] | None,
    packed_bits: int | None,
) -> bytes:
    """`export_checkpoint` of a checkpoint that is loaded already."""
    if calibration is not None and dtype != torch.float16:
        raise UnsupportedError("the exact profile's integers are made of float16 weights")
    if broken := not_finite(checkpoint.weights):
        reason = f"weights that are not finite: {listed(broken)}"
        raise FileError(reason, file=source, advice="fetch the checkpoint again")
    if calibration is not None:
        checkpoint = balanced(checkpoint, calibration)
    weights = {name: value.to(dtype) for name, value in checkpoint.weights.items()}
    if too_large := not_finite(weights):
        advice = "export with a wider type" if calibration is None else "leave the exact profile out"
        raise UnsupportedError(f"weights that do not fit {dtype}: {listed(too_large)}", file=source, advice=advice)
    if packed_bits is not None:
        weights = unpack_all(*pack_all(checkpoint.weights, packed_bits), packed_bits)
    exact = None
    if calibration is not None:
        rounded = replace(checkpoint, weights=weights, exact=None)
        exact = exact_data(rounded, calibration)
        # raises where integers cannot hold it
        exact_network(replace(rounded, exact=exact).as_stored(), compiled=False).make_transforms()
    record = (checkpoint.training, checkpoint.tables, exact)
    return save_checkpoint(target, checkpoint.config, weights, *record, packed_bits=packed_bits)


def balanced(checkpoint: Checkpoint, calibration: Sequence[Tensor]) -> Checkpoint:
    """The same model with weights that integers follow more closely; calibration: as `export_checkpoint` takes it."""
    copied = {name: value.clone() for name, value in checkpoint.weights.items()}
    model = replace(checkpoint, weights=copied).build_model()
    balance(model, calibration)
    return replace(checkpoint, weights=dict(model.state_dict()))


def exact_data(checkpoint: Checkpoint, calibration: Sequence[Tensor]) -> ExactData:
    """The units and stored functions that give a checkpoint an exact profile; calibration: as `export_checkpoint` takes it."""
    made = build_functions(sigma_borders() if checkpoint.config.scale_domain == "linear" else None)
    functions = StoredFunctions.of({name: torch.from_numpy(table) for name, table in made.tables().items()})
    return ExactData(calibrate(checkpoint.build_model(), calibration), functions)
