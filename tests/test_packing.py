"""Weights in 9 to 12 bits: what is stored comes back, exactly where it can and nearly otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from hpcm_codec.engines.exporting import export_checkpoint
from hpcm_codec.errors import FileError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.weights.checkpoints import load_checkpoint, save_checkpoint
from hpcm_codec.weights.packing import PLANES, SMALLEST_EXPONENT, largest_integer, pack, packable, unpack
from test_hpcm_phase1 import SMALL


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.0, 1e-9, 1e-6, 1e-3, 1.0, 5e4]),
    st.sampled_from([8, 16, 64]),
    st.sampled_from(sorted(PLANES)),
)
def test_rounding_is_to_the_nearest_step_of_the_row_and_happens_once(
    seed: int, size: float, columns: int, bits: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = size * (2 * torch.rand(5, columns, generator=generator) - 1)
    packed, exponents = pack(weight, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (5, bits * columns // 8)
    found = unpack(packed, exponents, (5, columns), bits)
    assert found.dtype == torch.float16
    step = torch.tensor([2.0 ** int(e) for e in exponents])[:, None]
    assert ((found.float() - weight).abs() <= step / 2).all()
    # the finest step that the row's largest weight allows, down to that of float16
    coarse = step[:, 0] > 2.0**SMALLEST_EXPONENT
    assert (weight.abs().amax(dim=1)[coarse] > largest_integer(bits) * step[coarse, 0] / 2).all()
    again, same = pack(found, bits)
    assert torch.equal(again, packed) and torch.equal(same, exponents)


@pytest.mark.parametrize("bits", sorted(PLANES))
def test_every_integer_survives(bits: int) -> None:
    largest = largest_integer(bits)
    integers = torch.arange(-largest, largest + 1).float()
    weight = torch.stack((integers[7:], integers.flip(0)[7:])) * 2.0**-9
    assert torch.equal(unpack(*pack(weight, bits), (2, 2 * largest - 6), bits).float(), weight)


def test_weights_that_float16_does_not_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        pack(torch.full((1, 8), 65536.0), 12)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("packing") / "small.safetensors"
    save_checkpoint(path, SMALL, HPCM(SMALL).state_dict(), {"steps": 7})
    return path


def test_a_packed_checkpoint_is_a_smaller_float16_one(source: Path, tmp_path: Path) -> None:
    packed, half = tmp_path / "packed.safetensors", tmp_path / "half.safetensors"
    identity = export_checkpoint(str(source), packed, packed_bits=10)
    export_checkpoint(str(source), half)
    checkpoint, trained = load_checkpoint(str(packed)), load_checkpoint(str(source))
    assert checkpoint.identity == identity
    assert checkpoint.training == {"steps": 7}
    assert list(checkpoint.weights) != [] and set(checkpoint.weights) == set(trained.weights)
    assert packed.stat().st_size < 0.8 * half.stat().st_size
    for name, value in trained.weights.items():
        found = checkpoint.weights[name]
        assert found.dtype == torch.float16
        if packable(name, value):
            assert (found - value).flatten(1).abs().amax() <= value.abs().amax() / largest_integer(10)
        else:
            assert torch.equal(found, value.half())
    export_checkpoint(str(packed), tmp_path / "again.safetensors", packed_bits=10)
    assert load_checkpoint(str(tmp_path / "again.safetensors")).identity == identity


@pytest.mark.parametrize("damage", ["missing", "shape", "large exponent", "small exponent"])
def test_damaged_packed_weights_are_refused_by_name(source: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "damaged.safetensors"
    export_checkpoint(str(source), path, packed_bits=10)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    name = next(name for name in tensors if name.startswith("exponents."))
    if damage == "missing":
        del tensors[name]
    elif damage.endswith("exponent"):
        tensors[name][0] = 100 if damage.startswith("large") else SMALLEST_EXPONENT - 1
    else:
        packing = json.loads(metadata["packed"])
        packing["shapes"][name.removeprefix("exponents.")][1] += 1
        metadata["packed"] = json.dumps(packing)
    save_file(tensors, path, metadata)
    with pytest.raises(FileError, match=r"damaged\.safetensors"):
        load_checkpoint(str(path))
