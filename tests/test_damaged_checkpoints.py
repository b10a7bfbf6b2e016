"""Checkpoints that are damaged in one place: each is refused by name, by whoever reads it, and never as a bug of the program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from hpcm_codec.cli.checkpoints import command as checkpoints
from hpcm_codec.cli.encode import command as encode
from hpcm_codec.cli.info import command as info
from hpcm_codec.errors import FileError, UnsupportedError
from hpcm_codec.model.config import ModelConfig, preset
from hpcm_codec.weights.registry import find_checkpoint

Tensors = dict[str, NDArray[Any]]
Metadata = dict[str, str]
Damage = Callable[[Tensors, Metadata], None]


@pytest.fixture(scope="module")
def sound() -> tuple[Tensors, Metadata]:
    with safe_open(find_checkpoint("phase1-lite"), "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photograph.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(path)
    return path


def configured(**values: Any) -> Damage:
    def change(tensors: Tensors, metadata: Metadata) -> None:
        metadata["config"] = json.dumps({**json.loads(metadata["config"]), **values})

    return change


def replaced(name: str, make: Callable[[NDArray[Any]], NDArray[Any]]) -> Damage:
    def change(tensors: Tensors, metadata: Metadata) -> None:
        tensors[name] = make(tensors[name])

    return change


def without(name: str) -> Damage:
    return lambda tensors, metadata: tensors.__delitem__(name)


def about(name: str, text: str) -> Damage:
    return lambda tensors, metadata: metadata.__setitem__(name, text)


def one(values: NDArray[Any]) -> NDArray[Any]:
    return values[:1]


def as_float32(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float32)


UNITS = "exact.fractions.context.cells.0.inner.key"
DAMAGES: dict[str, Damage] = {
    "sizes in floating point": replaced("tables.sizes", as_float32),
    "sizes as a plane": replaced("tables.sizes", lambda sizes: sizes.reshape(8, 8)),
    "no cumulative frequencies": without("tables.cumulative"),
    "units missing": without(UNITS),
    "units of one channel": replaced(UNITS, one),
    "units in floating point": replaced(UNITS, as_float32),
    "units too coarse": replaced(UNITS, lambda units: np.full_like(units, -128)),
    "powers cut": replaced("exact.tables.power", one),
    "exponentials cut": replaced("exact.tables.exponential", one),
    "powers in floating point": replaced("exact.tables.power", as_float32),
    "no powers": without("exact.tables.power"),
    "no configuration": lambda tensors, metadata: metadata.__delitem__("config"),
    "a configuration of brackets": about("config", "[" * 100_000),
    "a configuration of nothing": about("config", "{}"),
    "no cells": configured(cells=[]),
    "no rates": configured(rate_levels=0),
    "negative channels": configured(latent_channels=-16),
    "too many channels": configured(latent_channels=160_000_000),
    "channels as text": configured(latent_channels="320"),
    "an unknown field": configured(tomorrow=1),
    "a name of two lines": configured(name="phase1\nlite"),
    "a training record that is cut": about("training", "{"),
    "a training record that is a list": about("training", "[]"),
    "another format": about("format", "hpcm-checkpoint-9"),
    "packed by nothing": about("packed", "{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name(
    damage: str, sound: tuple[Tensors, Metadata], tmp_path: Path, photograph: Path
) -> None:
    tensors, metadata = dict(sound[0]), dict(sound[1])
    DAMAGES[damage](tensors, metadata)
    path = tmp_path / "damaged.safetensors"
    save_file(tensors, path, metadata)
    target = tmp_path / "photograph.hpcm"
    for command, arguments in (
        (checkpoints, ["verify", str(path)]),
        (encode, [str(photograph), "-o", str(target), "--model", str(path)]),
    ):
        error = CliRunner().invoke(command, arguments).exception
        assert isinstance(error, (FileError, UnsupportedError)), (arguments, error)
        assert error.file == str(path) and error.advice
        assert len(str(error)) < 600
    assert not target.exists()
    shown = CliRunner().invoke(info, ["--model", str(path)]).exception  # which makes no integers
    assert shown is None or isinstance(shown, (FileError, UnsupportedError)), shown


def test_weights_that_are_no_real_numbers_do_not_verify(sound: tuple[Tensors, Metadata], tmp_path: Path) -> None:
    tensors, metadata = dict(sound[0]), dict(sound[1])
    name = next(name for name, value in tensors.items() if value.dtype == np.float16)
    tensors[name] = tensors[name].astype(np.int32)
    save_file(tensors, tmp_path / "whole.safetensors", metadata)
    error = CliRunner().invoke(checkpoints, ["verify", str(tmp_path / "whole.safetensors")]).exception
    assert isinstance(error, FileError) and name in error.reason


@pytest.mark.parametrize("value", [True, 1.5, None, "8", 0, 10**400, float("nan")])
def test_a_configuration_takes_only_whole_numbers_where_it_has_to(value: Any) -> None:
    values = {**json.loads(preset("phase1-lite").to_json()), "hyper_channels": value}
    with pytest.raises(UnsupportedError, match="hyper_channels has to be a whole number"):
        ModelConfig.from_json(json.dumps(values))
