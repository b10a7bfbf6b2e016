"""The exact profile: integers that cannot overflow, files that decode under any arithmetic, and what it costs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import photographs_to_calibrate, small_photograph
from hpcm_codec.bitstream.container import parse_header
from hpcm_codec.codec import Codec, load_codec
from hpcm_codec.engines.exact.layers import (
    integer_depthwise,
    integer_factor,
    integer_linear,
    integer_norm,
    interpolated,
    level_position,
)
from hpcm_codec.engines.exact.network import log_scales
from hpcm_codec.engines.exact.weights import PackedRows, unpacked_rows
from hpcm_codec.engines.exporting import export_checkpoint
from hpcm_codec.engines.loading import exact_network
from hpcm_codec.entropy.sigmas import sigma_borders
from hpcm_codec.errors import CorruptStreamError, FileError, HpcmError, UnsupportedError
from hpcm_codec.images import Picture, read_picture
from hpcm_codec.images.fidelity import psnr
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.ops import build, integer, integer_weights
from hpcm_codec.ops.integer import LIMIT, WIDE, LinearScales, LinearWeights
from hpcm_codec.ops.integer_tables import build_functions, power_of_two
from hpcm_codec.ops.powers import times_power_of_two
from hpcm_codec.weights.checkpoints import Checkpoint, ExactData, load_checkpoint, save_checkpoint
from hpcm_codec.weights.packing import pack, unpack
from test_hpcm_phase1 import SMALL

TABLES = build_functions()


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load_checkpoint()


@pytest.fixture(scope="module")
def photo() -> Picture:
    return Picture(small_photograph(160, 96, seed=3))


# ------------------------------------------------------------------------------------------------------------- layers


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.sampled_from([1e-6, 1e-3, 0.1, 3.0, 40.0]), st.integers(-4, 12))
def test_no_accumulator_can_overflow(seed: int, inputs: int, size: float, fraction: int) -> None:
    random = np.random.default_rng(seed)
    weight = (size * random.standard_normal((5, inputs))).astype(np.float16).astype(np.float32)
    bias = random.standard_normal(5).astype(np.float16).astype(np.float64)
    units_in, units_out = random.integers(0, 12, inputs), np.full(5, fraction)
    for bound in (LIMIT, WIDE):
        try:
            made = integer_linear(weight, bias, units_in, units_out, "test", bound=bound)
        except UnsupportedError:
            continue
        assert isinstance(made, LinearWeights)
        sums = np.abs(made.weight.astype(np.int64)).sum(axis=1)
        worst = bound * sums + np.abs(made.bias.astype(np.int64)) + (1 << made.shift.astype(np.int64) >> 1)
        assert int(worst.max()) < 2**31
        assert made.shift.min() >= 0 and made.shift.max() <= 30


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.sampled_from([9, 10, 11, 12]))
def test_compiled_layers_are_those_of_numpy(seed: int, blocks: int, bits: int) -> None:
    """From packed rows, from real ones, with factors of rows, and depthwise."""
    if not build.ensure_built("integer"):
        pytest.skip(build.last_error("integer"))
    random = np.random.default_rng(seed)
    inputs, outputs = 8 * blocks, int(random.integers(1, 40))
    weight = torch.from_numpy(random.standard_normal((outputs, inputs)) * np.exp(random.standard_normal((outputs, 1))))
    integers, exponents = pack(weight, bits)
    packed: PackedRows = integers.numpy(), exponents.numpy(), bits
    rows = unpack(integers, exponents, (outputs, inputs), bits).float().numpy()
    assert np.array_equal(unpacked_rows(packed), rows)
    assert np.array_equal(integer_weights.unpacked(*packed), rows)
    units = random.integers(4, 12, inputs), random.integers(-4, 5, outputs)
    factor = random.standard_normal(outputs).astype(np.float16).astype(np.float32)
    bias = random.standard_normal(outputs).astype(np.float16).astype(np.float64)
    for source in (rows, packed):
        for row_factor, offset in ((None, bias), (factor, None)):
            named: dict[str, Any] = {"row_factor": row_factor, "bound": WIDE, "limit": WIDE}
            plain = integer_linear(source, offset, *units, "test", **named)
            compiled = integer_linear(source, offset, *units, "test", **named, compiled=True)
            again = integer_weights.packed_linear(plain)
            for part in ("packed", "offset", "shift"):
                assert np.array_equal(getattr(compiled, part), getattr(again, part)), part
    kernel = random.standard_normal((outputs, 1, 3, 3)).astype(np.float16).astype(np.float64)
    both = [integer_depthwise(kernel, bias, units[1], units[1], "test", compiled=c) for c in (False, True)]
    assert all(np.array_equal(getattr(both[0], part), getattr(both[1], part)) for part in ("kernel", "bias", "shift"))


def as_tensors(made: Any) -> Any:
    return dataclasses.replace(
        made, **{name: torch.from_numpy(value) for name, value in vars(made).items() if isinstance(value, np.ndarray)}
    )


def test_integer_layers_compute_what_the_trained_ones_do() -> None:
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(64, 48)
    layer.weight.data = torch.randn(48, 64, generator=generator).div(8).half().float()
    layer.bias.data = torch.randn(48, generator=generator).half().float()
    units_in, units_out = (
        torch.randint(6, 11, (64,), generator=generator),
        torch.randint(7, 11, (48,), generator=generator),
    )
    x = torch.ldexp(torch.randn(3, 5, 64, generator=generator), units_in).round().clamp(-LIMIT, LIMIT)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().double().numpy()
    made = integer_linear(weight, bias, units_in.numpy(), units_out.numpy(), "test")
    found = torch.ldexp(integer.linear(x.short(), weights=as_tensors(made)).float(), -units_out)
    expected = layer(torch.ldexp(x, -units_in))
    assert torch.allclose(found, expected.detach(), atol=0.01)


def test_weights_that_no_shift_can_hold_are_refused_by_name() -> None:
    huge, units = np.full((1, 4), 60000.0, np.float32), (np.zeros(4, np.int64), np.array([12]))
    for compiled in (False, build.ensure_built("integer")):
        with pytest.raises(UnsupportedError, match=r"h_s\.7"):
            integer_linear(huge, None, *units, "h_s.7", compiled=compiled)
    with pytest.raises(UnsupportedError, match="cell"):
        integer_factor(np.array([9.0]), "cell")


def test_depthwise_and_norm_follow_their_trained_layers() -> None:
    generator = torch.Generator().manual_seed(2)
    kernel = torch.randn(8, 1, 5, 5, generator=generator).div(5).half().double()
    x = torch.randn(1, 8, 6, 7, generator=generator)
    units = np.full(8, 10)
    plane = (x[0].permute(1, 2, 0) * 1024).round().short().contiguous()
    made = as_tensors(integer_depthwise(kernel.numpy(), None, units, units, "test"))
    expected = torch.nn.functional.conv2d(x, kernel.float(), padding=2, groups=8)[0].permute(1, 2, 0)
    assert torch.allclose(integer.depthwise(plane, made).float() / 1024, expected, atol=0.01)
    weight, bias = torch.rand(8, generator=generator) + 0.5, torch.randn(8, generator=generator)
    norm = as_tensors(integer_norm(weight.double().numpy(), bias.double().numpy(), 1e-5, 10, units))
    normed = integer.layer_norm(plane, norm).float() / 1024
    expected = torch.nn.functional.layer_norm(plane.float() / 1024, (8,), weight, bias)
    assert torch.allclose(normed, expected, atol=0.01)


def test_stored_functions_are_what_they_say() -> None:
    assert TABLES.exponential[0] == 1 << 14 and TABLES.exponential[-1] >= 1
    assert TABLES.exponential[256] == round((1 << 14) / np.e)
    assert (np.diff(TABLES.exponential) <= 0).all() and (np.diff(TABLES.sigmoid) >= 0).all()
    assert TABLES.sigmoid[2048] == 1 << 13
    exponent = np.array([0, 1 << 16, -(1 << 16), 3 << 15, -(21 << 16)])
    assert power_of_two(exponent, TABLES.power.astype(np.int64)).tolist() == [
        1 << 14,
        1 << 15,
        1 << 13,
        46340,
        0,
    ]  # 2^1.5 · 2^14 = 46340.95, from a table entry of 15 bits


def test_levels_are_interpolated_in_integers() -> None:
    levels = np.array([[0], [100], [-300]])
    assert [int(interpolated(levels, level_position(code, 3))[0]) for code in (0, 50, 100, 150, 200)] == [
        0,
        50,
        100,
        -100,
        -300,
    ]


def test_the_table_index_is_the_nearest_level() -> None:
    from hpcm_codec.entropy.distributions import sigma_of

    logarithms = (sigma_of(torch.arange(64)).log() * 1024).round().long()
    for scales in (logarithms, logarithms.numpy()):
        assert integer.index_of(scales, log_scales(scales * 0)).tolist() == list(range(64))
    extremes = torch.tensor([-(10**6), 10**6])
    assert integer.index_of(extremes, log_scales(extremes * 0)).tolist() == [0, 63]


def test_the_table_index_of_a_linear_scale_is_that_of_its_logarithm() -> None:
    """Everywhere but at a border, where the float's last bit decides; the same of arrays and tensors."""
    from hpcm_codec.entropy.distributions import sigma_index

    thresholds = build_functions(sigma_borders()).thresholds
    assert thresholds is not None and len(thresholds) == 63 and (np.diff(thresholds) > 0).all()
    in_units = np.arange(-10, 1 << 18, dtype=np.int64)
    found = integer.index_of(in_units, LinearScales(thresholds, in_units * 0))
    expected = sigma_index(torch.from_numpy(in_units).double().ldexp(torch.tensor(-12)).clamp(0.12, 64)).numpy()
    assert np.array_equal(found, expected)
    of_tensors = integer.index_of(
        torch.from_numpy(in_units), LinearScales(torch.from_numpy(thresholds), torch.from_numpy(in_units * 0))
    )
    assert np.array_equal(of_tensors.numpy(), found)


# -------------------------------------------------------------------------------------------------------------- files


def test_the_shipped_model_writes_exact_files(codec: Codec, photo: Picture) -> None:
    assert codec.profile == "exact"
    assert not parse_header(codec.encode(photo, 30)).float_profile


@pytest.mark.parametrize("quality", [0, 47.5, 100])
def test_exact_costs_next_to_nothing(shipped: Checkpoint, root: Path, quality: float) -> None:
    whole = read_picture(root / "examples" / "chelsea.png")
    picture = Picture(np.ascontiguousarray(whole.pixels[20:276, 60:380]))
    exact, floating = (Codec(shipped, "cpu", profile) for profile in ("exact", "float"))
    files = [codec.encode(picture, quality) for codec in (exact, floating)]
    assert len(files[0]) < 1.006 * len(files[1])
    fidelities = [
        psnr(picture.pixels, codec.decode(data).pixels) for codec, data in zip((exact, floating), files, strict=True)
    ]
    assert fidelities[0] > fidelities[1] - 0.03


@pytest.mark.parametrize("spread", [200.0, 300.0])
def test_drawings_saturate_nothing(shipped: Checkpoint, spread: float) -> None:
    """Rings in three colours, unlike those that units are found with; one clamped latent in a hundred would cost 2 dB."""
    rows, columns = np.mgrid[:192, :256]
    phase = ((columns - 100) ** 2 + (rows - 90) ** 2) / spread
    levels = np.stack([127.5 + 127.5 * np.sin(phase + colour) for colour in range(3)], axis=-1)
    picture = Picture(np.rint(levels).astype(np.uint8))
    exact, floating = (Codec(shipped, "cpu", profile) for profile in ("exact", "float"))
    fidelities = [psnr(picture.pixels, codec.decode(codec.encode(picture, 100)).pixels) for codec in (exact, floating)]
    assert fidelities[0] > fidelities[1] - 0.1


def test_files_decode_the_same_in_another_process_with_other_operators(
    codec: Codec, photo: Picture, tmp_path: Path
) -> None:
    path = tmp_path / "a.hpcm"
    path.write_bytes(codec.encode(photo, 61.5))
    code = (
        "import sys, torch; torch.set_num_threads(1); from hpcm_codec.codec import load_codec;"
        "print(load_codec(device='cpu').symbol_digest(open(sys.argv[1], 'rb').read()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env={**os.environ, "HPCM_OPS": "torch"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == codec.symbol_digest(path.read_bytes()), done.stderr


def test_files_of_the_float_profile_still_decode(shipped: Checkpoint, codec: Codec, photo: Picture) -> None:
    floating = Codec(shipped, "cpu", "float")
    data = floating.encode(photo, 40)
    assert parse_header(data).float_profile
    assert np.array_equal(codec.decode(data).pixels, floating.decode(data).pixels)


def test_the_encoder_knows_what_the_decoder_will_show(codec: Codec, photo: Picture) -> None:
    encoded = codec.encode_with_latents(photo, 70)
    shown = codec.reconstruct(encoded.latents, parse_header(encoded.data))
    assert np.array_equal(shown, codec.decode(encoded.data).pixels)


def test_models_without_an_exact_profile_say_so(shipped: Checkpoint, codec: Codec, photo: Picture) -> None:
    bare = dataclasses.replace(shipped, exact=None)
    assert Codec(bare, "cpu").profile == "float"
    with pytest.raises(UnsupportedError, match="export .* --exact"):
        Codec(bare, "cpu", "exact")
    with pytest.raises(UnsupportedError, match="exact profile"):
        Codec(bare, "cpu").decode(codec.encode(photo, 20))


def test_symbols_that_the_encoder_did_not_code_are_refused(
    codec: Codec, photo: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = codec.encode(photo, 50)
    monkeypatch.setattr("hpcm_codec.engines.exact.network._INDEX_OFFSET", 2185)
    with pytest.raises(CorruptStreamError, match="selftest"):
        codec.decode(data)


# ------------------------------------------------------------------------------------------------------------- export


def test_export_adds_an_exact_profile_to_any_model_of_the_kind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HPCM(SMALL).eval()
    save_checkpoint(tmp_path / "float.safetensors", SMALL, dict(model.state_dict()), {})
    pictures = photographs_to_calibrate(3)
    source, target = str(tmp_path / "float.safetensors"), tmp_path / "exact.safetensors"
    identity = export_checkpoint(source, target, calibration=pictures)
    exact = load_codec(str(target), "cpu")
    assert exact.profile == "exact" and exact.identity == identity != load_checkpoint(source).identity
    picture = Picture(small_photograph(70, 90, seed=9))
    data = exact.encode(picture, 33.5)
    assert exact.decode(data).pixels.shape == picture.pixels.shape


def test_the_identity_covers_the_integers(shipped: Checkpoint, tmp_path: Path) -> None:
    assert shipped.exact is not None
    changed = {name: value.clone() for name, value in shipped.exact.fractions.items()}
    changed["latents"][0] -= 1
    path = tmp_path / "changed.safetensors"
    other = ExactData(changed, shipped.exact.tables)
    assert save_checkpoint(path, shipped.config, shipped.weights, {}, shipped.tables, other) != shipped.identity


def test_checkpoints_that_lack_a_part_of_the_profile_are_refused_by_name(shipped: Checkpoint, tmp_path: Path) -> None:
    assert shipped.exact is not None
    fewer = {name: value for name, value in shipped.exact.fractions.items() if name != "context.prior_s3"}
    broken = dataclasses.replace(shipped, exact=ExactData(fewer, shipped.exact.tables))
    with pytest.raises(UnsupportedError, match=r"context\.prior_s3"):
        Codec(broken, "cpu")
    from safetensors.torch import save_file

    tensors = {f"tables.{name}": value for name, value in vars(shipped.tables).items()}
    tensors |= {**shipped.weights, "exact.fractions.latents": changed_latents(shipped)}
    metadata = {"format": "hpcm-checkpoint-1", "config": shipped.config.to_json(), "training": "{}"}
    save_file(tensors, tmp_path / "half.safetensors", metadata)
    with pytest.raises(FileError, match="exponential"):
        load_checkpoint(str(tmp_path / "half.safetensors"))


def changed_latents(checkpoint: Checkpoint) -> torch.Tensor:
    assert checkpoint.exact is not None
    return checkpoint.exact.fractions["latents"]


def test_moving_to_a_device_moves_every_integer(shipped: Checkpoint) -> None:
    network = exact_network(shipped.as_stored(), compiled=False)
    moved = network.to(torch.device("meta"))
    cell = moved.cells[2]
    for tensor in (
        moved.functions.power,
        moved.latent_fraction,
        moved.hyper_synthesis.first.weights.weight,  # type: ignore[union-attr]
        moved.adaptors[1][0].phase,
        moved.adaptors[2][5].gain,
        moved.prior_s3.after[1].project.shift,  # type: ignore[index]
        cell.block.norm1.gamma,  # type: ignore[union-attr]
        cell.block.spatial.key.bias,  # type: ignore[union-attr]
        cell.block.channel.functions.sigmoid,  # type: ignore[union-attr]
    ):
        assert tensor is not None and tensor.is_meta


def test_powers_of_two_are_exact() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).half()
    for exponent in (-24, -3, 0, 1, 30):
        for kind in (torch.float32, torch.float64):
            expected = np.ldexp(x.to(kind).numpy(), exponent)
            assert np.array_equal(times_power_of_two(x.to(kind), exponent).numpy(), expected)
            assert np.array_equal(times_power_of_two(x.to(kind), torch.full((1000,), exponent)).numpy(), expected)


def test_latents_that_cannot_be_coded_are_refused() -> None:
    codec = load_codec(
        device="cpu", profile="float"
    )  # those of the integer engine are integers of 16 bits, all of which can be coded
    for value in (float("nan"), 1e9):
        analysed = torch.zeros(1, codec.config.latent_channels, 4, 4)
        analysed[0, 3, 1, 2] = value
        with pytest.raises(HpcmError, match="latent"):
            codec.encode_analysed(Picture(small_photograph(64, 64)), analysed, 50)


def test_exact_profiles_are_made_of_float16_weights(shipped: Checkpoint) -> None:
    wide = dataclasses.replace(shipped, weights={name: value.float() for name, value in shipped.weights.items()})
    with pytest.raises(UnsupportedError, match="float16"):
        Codec(wide, "cpu")
