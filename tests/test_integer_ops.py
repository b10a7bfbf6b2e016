"""The integer operators: compiled and plain give the same numbers, and the plain ones are what they are named after."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hpcm_codec.model import schedule
from hpcm_codec.ops import build, ensure_built, integer, integer_native, integer_reference
from hpcm_codec.ops.biwkv4 import biwkv4
from hpcm_codec.ops.integer import (
    LIMIT,
    WIDE,
    AttentionScale,
    DepthwiseWeights,
    LinearScales,
    LinearWeights,
    LogScales,
    NormWeights,
    PositionFactors,
)

EXPONENTIALS = (torch.exp(-torch.arange(2662) / 256).double() * 2**14).round().to(torch.int16)
SIGMOIDS = (torch.sigmoid(torch.arange(-2048, 2048).double() / 256) * 2**14).round().to(torch.int16)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The operators' threads. PyTorch's own are left alone: the plain versions would only be slower."""
    if not ensure_built("integer"):
        pytest.skip(build.last_error("integer"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    yield request.param


def whole(shape: tuple[int, ...], reach: int, random: torch.Generator, dtype: torch.dtype = torch.int16) -> Tensor:
    """Uniform integers within ±reach, both ends included."""
    return torch.randint(-reach, reach + 1, shape, generator=random).to(dtype)


def activations(shape: tuple[int, ...], kind: str, random: torch.Generator, reach: int = LIMIT) -> Tensor:
    """'random', or 'extreme': ±LIMIT everywhere, or 'bottom': -LIMIT everywhere."""
    if kind == "random":
        return whole(shape, reach, random)
    if kind == "extreme":
        return (whole(shape, 1, random) >= 0).to(torch.int16) * (2 * LIMIT) - LIMIT
    return torch.full(shape, -LIMIT, dtype=torch.int16)


def as_arrays(value: Any) -> Any:
    """The same with numpy arrays for tensors."""
    if isinstance(value, Tensor):
        return value.numpy()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(as_arrays(part) for part in vars(value).values()))
    return tuple(map(as_arrays, value)) if isinstance(value, tuple) else value


def strided(value: Any) -> Any:
    """The same, with activations that are not contiguous."""
    if isinstance(value, Tensor) and value.ndim > 1:
        return value.mT.contiguous().mT
    return tuple(map(strided, value)) if isinstance(value, tuple) else value


def same(name: str, *arguments: object, limit: int = LIMIT, **named: object) -> Tensor:
    """The plain result, after checking that the compiled one is equal, also from strided inputs."""
    expected: Tensor = getattr(integer_reference, name)(*arguments, **named)
    assert expected.dtype == torch.int16 and int(expected.abs().max()) <= limit
    for passed in (arguments, tuple(map(strided, arguments))):
        named_arrays = {key: as_arrays(value) for key, value in named.items()}
        got = getattr(integer_native, name)(*map(as_arrays, passed), **named_arrays)
        assert got.flags.c_contiguous and got.dtype == np.int16
        assert np.array_equal(got, expected.numpy()), (
            f"{name}: {int((got != expected.numpy()).sum())} of {got.size} differ"
        )
    return expected


# ---- compiled against plain


def linear_weights(inputs: int, outputs: int, random: torch.Generator, *, full: bool = False) -> LinearWeights:
    """full: rows whose sums reach the last bits of int32."""
    largest = ((1 << 31) - 1 - (1 << 29) - (1 << 24)) // (LIMIT * inputs) if full else 400
    weight = whole((outputs, inputs), min(largest, 32767), random)
    if full:
        weight = torch.where(weight < 0, -min(largest, 32767), min(largest, 32767)).to(torch.int16)
    shift = torch.randint(0, 31 if full else 14, (outputs,), generator=random).to(torch.int32)
    shift[0] = 0
    return LinearWeights(weight, whole((outputs,), 1 << 24, random, torch.int32), shift)


def test_layers_taken_together_give_what_each_gives_alone(threads: int, random: torch.Generator) -> None:
    x = activations((5, 7, 33), "random", random)
    layers = [linear_weights(33, outputs, random) for outputs in (17, 48, 1)]
    alone = [integer_reference.linear((x,), weights) for weights in layers]
    found = integer.together(x, layers)
    assert all(torch.equal(one, expected) for one, expected in zip(found, alone, strict=True))
    compiled = integer.together(x.numpy(), [as_arrays(layer) for layer in layers])
    assert all(np.array_equal(one, expected) for one, expected in zip(compiled, alone, strict=True))


@pytest.mark.parametrize(
    ("height", "width", "inputs", "outputs"),
    [
        (1, 1, 1, 1),
        (1, 1, 96, 96),
        (3, 5, 33, 17),
        (8, 12, 96, 192),
        (7, 11, 192, 40),
        (13, 9, 7, 50),
        (24, 64, 64, 33),
    ],
)
@pytest.mark.parametrize("kind", ["random", "extreme", "bottom"])
def test_linear(
    threads: int, random: torch.Generator, height: int, width: int, inputs: int, outputs: int, kind: str
) -> None:
    x = activations((height, width, inputs), kind, random)
    for full in (False, True):
        weights = linear_weights(inputs, outputs, random, full=full)
        factor = activations((outputs,), kind, random) * 4
        added = activations((height, width, outputs), kind, random)
        same("linear", (x,), weights)
        same("linear", (x,), weights, leaky=True)
        same("linear", (x,), weights, leaky=True, factor=factor)
        same("linear", (x,), weights, factor=factor, added=added)
        same("linear", (x,), weights, leaky=True, added=added.mT.contiguous().mT)


def test_linear_at_the_last_bit_of_the_accumulator(threads: int) -> None:
    """Sum, bias and rounding add up to 2^31 - 1 and to -2^31 + 1."""
    for sign in (1, -1):
        x = torch.full((1, 9, 8), LIMIT * sign, dtype=torch.int16)
        weight = torch.full((1, 8), 32767, dtype=torch.int16)
        for shift in (0, 9, 30):
            rounding = (1 << shift) >> 1
            rest = (1 << 31) - 1 - 8 * LIMIT * 32767 - rounding
            if rest < 0:
                weight = weight // 2
                rest = (1 << 31) - 1 - 8 * LIMIT * (32767 // 2) - rounding
            bias = torch.tensor([sign * min(rest, (1 << 31) - 1)], dtype=torch.int32)
            same("linear", (x,), LinearWeights(weight, bias, torch.tensor([shift], dtype=torch.int32)))


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 16), (5, 1, 19), (9, 17, 40), (16, 70, 96)])
@pytest.mark.parametrize("kind", ["random", "extreme", "bottom"])
def test_depthwise(threads: int, random: torch.Generator, size: int, shape: tuple[int, int, int], kind: str) -> None:
    x = activations(shape, kind, random)
    channels = shape[-1]
    for reach in (300, ((1 << 31) - 1 - (1 << 29) - (1 << 24)) // (LIMIT * size**2)):
        kernel = whole((size, size, channels), 1, random).sign().mul(min(reach, 32767)).to(torch.int16)
        shift = torch.randint(0, 31, (channels,), generator=random).to(torch.int32)
        weights = DepthwiseWeights(kernel, whole((channels,), 1 << 24, random, torch.int32), shift)
        if size in integer_native.KERNELS:
            same("depthwise", x, weights)
        else:
            with pytest.raises(ValueError, match="depthwise"):
                integer_native.depthwise(x.numpy(), as_arrays(weights))


SHAPES = [(1, 1, 1), (3, 5, 7), (8, 12, 96), (16, 64, 200)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["random", "extreme", "bottom"])
def test_elementwise(threads: int, random: torch.Generator, shape: tuple[int, int, int], kind: str) -> None:
    x, control = activations(shape, kind, random), activations(shape, "random", random)
    same("scale", x, whole(shape[-1:], 32767, random))
    same("scale", x, torch.full(shape[-1:], -32768, dtype=torch.int16))
    same("gate", control, x, SIGMOIDS)
    same("gate", control, x, torch.full((4096,), -32768, dtype=torch.int16))
    for shift in (0, 1, 13, 14, 26, 27, 31, 40):
        same("squared_relu", x, shift)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["random", "extreme", "bottom", "small"])
def test_layer_norm(threads: int, random: torch.Generator, shape: tuple[int, int, int], kind: str) -> None:
    x = activations(shape, "random", random, 2) if kind == "small" else activations(shape, kind, random)
    x[0, 0, 0] = 5
    channels = shape[-1]
    for reach, shift, epsilon in ((1 << 14, 12, 1), ((1 << 31) - 1, 0, 1), ((1 << 31) - 1, 40, 10**6), (300, 62, 7)):
        gamma, beta = (whole((channels,), reach, random, torch.int32) for _ in range(2))
        same("layer_norm", x, NormWeights(gamma, beta, shift, epsilon))


@pytest.mark.parametrize(
    ("height", "width", "channels", "heads", "window"),
    [
        (1, 1, 8, 8, 8),
        (4, 4, 192, 8, 4),
        (7, 13, 192, 8, 4),
        (19, 10, 192, 8, 8),
        (3, 20, 48, 2, 8),
        (9, 9, 15, 3, 4),
        (8, 8, 64, 2, 8),
        (16, 25, 192, 8, 8),
        (9, 13, 640, 32, 8),  # of the published width
        (12, 10, 34, 1, 4),  # heads and windows that the compiled version refuses
        (10, 12, 16, 2, 10),
    ],
)
@pytest.mark.parametrize("kind", ["random", "extreme", "bottom"])
def test_window_attention(
    threads: int, random: torch.Generator, height: int, width: int, channels: int, heads: int, window: int, kind: str
) -> None:
    q, k, v = (activations((height, width, channels), kind, random) for _ in range(3))
    for scores in (
        AttentionScale(1, 20),
        AttentionScale(23170, 36),
        AttentionScale((1 << 31) - 1, 50),
        AttentionScale(1, 0),
    ):
        arguments = (q, k, v, heads, window, scores, EXPONENTIALS)
        if integer_native.can_attend(channels, heads, window):
            same("window_attention", *arguments)
        else:
            with pytest.raises(ValueError, match="windows"):
                integer_native.window_attention(*map(as_arrays, arguments))


def position_factors(tokens: int, w: Tensor, u: Tensor) -> PositionFactors:
    """For decays w per token and boosts u."""
    length = -(-tokens // integer.BLOCKS)
    steps = torch.arange(length + 1).double()[:, None]
    growth, fading = ((sign * steps * w.double()).exp() * 2**14 for sign in (1, -1))
    itself = u.double().exp() * 2**14
    return PositionFactors(*(x.round().to(torch.int32) for x in (growth[:-1], fading, itself)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (4, 4, 8), (8, 12, 96), (17, 23, 20), (64, 64, 9)])
@pytest.mark.parametrize("kind", ["random", "extreme", "bottom"])
def test_bi_wkv(threads: int, random: torch.Generator, shape: tuple[int, int, int], kind: str) -> None:
    tokens, channels = shape[0] * shape[1], shape[2]
    v = activations(shape, kind, random)
    for reach in (200, 1500):
        k = whole(shape, reach, random)
        # both directions of decay, each as far as int64 holds the sums
        w = (torch.rand(channels, generator=random) * 10 - 2) / tokens
        same("bi_wkv", k, v, position_factors(tokens, w, torch.rand(channels, generator=random) * 4 - 2), EXPONENTIALS)


def test_bi_wkv_without_any_weight_gives_zero(threads: int) -> None:
    """The token's own weight and all others' have faded away."""
    k = torch.tensor([0, -8000, 0], dtype=torch.int16).reshape(1, 3, 1)
    factors = position_factors(3, torch.zeros(1), torch.zeros(1))
    nothing = dataclasses.replace(factors, fading=torch.zeros_like(factors.fading))
    assert same("bi_wkv", k, k, nothing, EXPONENTIALS).flatten().tolist() == [0, 0, 0]


def test_work_that_is_worth_several_threads(threads: int, random: torch.Generator) -> None:
    x, other = (whole((40, 72, 400), LIMIT, random) for _ in range(2))
    numbers, shift = whole((400,), 1 << 14, random, torch.int32), torch.full((400,), 12, dtype=torch.int32)
    same("linear", (x,), linear_weights(400, 72, random), added=other[..., :72])
    same("depthwise", x, DepthwiseWeights(whole((5, 5, 400), 300, random), numbers, shift))
    same("scale", x, whole((400,), 9999, random))
    same("layer_norm", x, NormWeights(numbers, numbers.flip(0), 12, 1))
    same("gate", x, other, SIGMOIDS)
    same("squared_relu", x, 13)
    x, other = x[..., :80], other[..., :80]
    same("window_attention", x, other, x, 4, 8, AttentionScale(23170, 36), EXPONENTIALS)
    same("bi_wkv", x // 8, other, position_factors(2880, torch.zeros(80), torch.zeros(80)), EXPONENTIALS)


def test_arguments_that_do_not_fit_are_named(threads: int, random: torch.Generator) -> None:
    x, weights = whole((2, 3, 8), 9, random), linear_weights(8, 5, random)
    plane, layer = x.numpy(), as_arrays(weights)
    with pytest.raises(TypeError, match="x: expected int16"):
        integer_native.linear((plane.astype(np.int32),), layer)
    with pytest.raises(ValueError, match="added"):
        integer_native.linear((plane,), layer, added=plane)
    with pytest.raises(ValueError, match="inputs"):
        integer_native.linear((plane, plane), layer)
    with pytest.raises(ValueError, match="table"):
        integer_native.gate(plane, plane, SIGMOIDS.numpy()[1:])
    with pytest.raises(ValueError, match="area"):
        integer_native.pixels_in(np.zeros((4, 4, 3), np.uint8), (4, 0, 1, 1), 0, np.zeros(256, np.int16))
    with pytest.raises(ValueError, match="draw"):
        integer_native.drawn_pixels(np.zeros((2, 2, 192), np.int16), 8, (9, 0, 8, 8), 5, grey=False)
    many, factors = whole((8, 12, 8), 9, random), position_factors(3, torch.zeros(8), torch.zeros(8))
    with pytest.raises(ValueError, match="tokens"):
        integer_native.bi_wkv(many.numpy(), many.numpy(), as_arrays(factors), EXPONENTIALS.numpy())


def test_arrays_are_compiled_and_tensors_are_not(threads: int, random: torch.Generator) -> None:
    x = whole((2, 3, 8), LIMIT, random)
    assert isinstance(integer.squared_relu(x, 13), Tensor)
    assert isinstance(integer.squared_relu(x.numpy(), 13), np.ndarray)


def test_wide_planes(threads: int, random: torch.Generator) -> None:
    """Layers whose inputs and outputs go up to WIDE."""
    x = activations((5, 6, 32), "random", random, WIDE)
    weights = dataclasses.replace(linear_weights(32, 48, random), limit=WIDE)
    added = whole((5, 6, 48), WIDE, random)
    same("linear", (x,), weights, factor=whole((48,), 32767, random), added=added, limit=WIDE)
    kernel = DepthwiseWeights(whole((3, 3, 32), 300, random), weights.bias[:32], weights.shift[:32], WIDE)
    same("depthwise", x, kernel, limit=WIDE)


@pytest.mark.parametrize(("height", "width", "channels", "outputs"), [(4, 6, 8, 16), (9, 23, 16, 33), (17, 40, 6, 192)])
def test_windows(threads: int, random: torch.Generator, height: int, width: int, channels: int, outputs: int) -> None:
    x = activations((height, width, channels), "random", random)
    for size, step in ((2, 2), (2, 1), (1, 1), (4, 2), (4, 4)):
        same("windows", x, linear_weights(size * size * channels, outputs, random), size, step)


def test_windows_of_an_odd_number_of_channels(threads: int, random: torch.Generator) -> None:
    x = activations((9, 12, 3), "random", random)
    for size, step in ((3, 1), (3, 2), (1, 1), (5, 4)):
        same("windows", x, linear_weights(size * size * 3, 10, random), size, step)


@pytest.mark.parametrize("channels", [8, 7])
def test_planes_with_rings_of_one_value(threads: int, random: torch.Generator, channels: int) -> None:
    x = activations((5, 6, 11), "random", random)
    for rings, value in ((1, 0), (2, -LIMIT)):
        padded = same("padded", x[..., :channels], rings, value)
        inside = slice(rings, -rings)
        assert torch.equal(padded[inside, inside], x[..., :channels])
        padded[inside, inside] = value
        assert (padded == value).all()


@pytest.mark.parametrize("active", [8, 7])
def test_some_channels_of_a_plane_beside_another_plane(threads: int, random: torch.Generator, active: int) -> None:
    """As a partial convolution leaves them: new first channels, and the others of the plane they came from."""
    x, new = (activations((6, 13, channels), "random", random) for channels in (32, active))
    weights = linear_weights(32, 50, random)
    expected = integer_reference.linear((torch.cat((new, x[..., active:]), dim=2),), weights, leaky=True)
    found = integer_native.linear((new.numpy(), x.numpy()[..., active:]), as_arrays(weights), leaky=True)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [(5, 7), (48, 44), (61, 67)])
@pytest.mark.parametrize("channels", [8, 24, 40])
def test_branches(threads: int, random: torch.Generator, size: tuple[int, int], channels: int) -> None:
    """Planes below and above the size from which both layers are computed together."""
    assert 5 * 7 < integer_native.FUSED_PLACES < 48 * 44
    stream, new = (
        activations((*size, channels), "random", random, WIDE),
        activations((*size, channels // 4), "random", random),
    )
    narrow = activations((*size, channels), "random", random)
    expand, project = linear_weights(channels, 4 * channels, random), linear_weights(4 * channels, channels, random)
    project = dataclasses.replace(project, limit=WIDE)
    for factor in (None, whole((channels,), 32767, random)):
        for inputs in ((narrow,), (new, narrow[..., channels // 4 :])):
            found = same("branch", inputs, expand, project, factor=factor, added=stream, limit=WIDE)
            hidden = integer.linear(*inputs, weights=expand, leaky=True)
            assert torch.equal(found, integer.linear(hidden, weights=project, factor=factor, added=stream))
    with pytest.raises(ValueError, match="inputs"):
        integer_native.branch(
            (as_arrays(new),), as_arrays(expand), as_arrays(project), factor=None, added=as_arrays(stream)
        )


@pytest.mark.parametrize("outputs", [64, 192, 12])
def test_doubled(threads: int, random: torch.Generator, outputs: int) -> None:
    x = activations((5, 11, 24), "random", random)
    same("doubled", x, linear_weights(24, outputs, random))


def test_two_planes_side_by_side_and_what_is_added_again_and_again(threads: int, random: torch.Generator) -> None:
    one, other = activations((7, 10, 24), "random", random), activations((7, 10, 8), "random", random)
    weights, cell = linear_weights(32, 50, random), activations((4, 4, 50), "random", random)
    same("linear", (one, other), weights, added=cell, repeated=True)


def test_rescaled_planes(threads: int, random: torch.Generator) -> None:
    x = torch.randint(-(2**30), 2**30, (5, 7, 40), generator=random).to(torch.int32)
    factor = torch.randint(0, 2**31, (40,), generator=random)
    for shift, limit in ((0, LIMIT), (6, LIMIT), (30, WIDE), (45, WIDE)):
        same("rescale", x, factor, shift, limit, limit=limit)
        same("rescale", x, None, shift, limit, limit=limit)


def test_a_gate_adds(threads: int, random: torch.Generator) -> None:
    control, x, added = (activations((5, 7, 96), "random", random) for _ in range(3))
    same("gate", control, x, SIGMOIDS, added)


@pytest.mark.parametrize("size", [(4, 4), (6, 10), (12, 8)])
def test_steps(threads: int, random: torch.Generator, size: tuple[int, int]) -> None:
    """Every coding step: table indexes and means out of a plane, and symbols into one."""
    channels = 16
    params = activations((*size, 2 * channels), "random", random)
    gain, unit = whole((channels,), 900, random, torch.int64), torch.rand(channels, generator=random)
    logarithms = LogScales(gain, 2171, 642, 16, 63)
    thresholds = torch.cumsum(whole((63,), 2000, random, torch.int32).abs() + 1, 0).to(torch.int32)
    linear = LinearScales(thresholds, torch.arange(channels))
    for scale, scales in itertools.product(schedule.scales(channels), (logarithms, linear)):
        for step in scale.steps:
            arguments: tuple[Any, ...] = (step, params, scales, unit)
            expected = integer_reference.step_parameters(*arguments)
            got: tuple[Any, ...] = integer_native.step_parameters(*map(as_arrays, arguments))
            assert all(np.array_equal(one, other) for one, other in zip(got, expected, strict=True))
            symbols = torch.randint(-3000, 3000, (len(got[0]),), generator=random).to(torch.int32)
            latents = torch.randint(-99999, 99999, (*size, channels), generator=random).to(torch.int32)
            placed = (step, symbols, expected[1], whole((channels,), 2**20, random, torch.int64).abs(), latents, 6)
            wanted = integer_reference.decoded(*placed).numpy()
            assert np.array_equal(integer_native.decoded(*(as_arrays(strided_copy(v)) for v in placed)), wanted)


def strided_copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("colours", [1, 3])
def test_pixels(threads: int, random: torch.Generator, colours: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (21, 34, colours)).astype(np.uint8)
    table = whole((256,), LIMIT, random)
    for area in ((0, 0, 16, 16), (3, 7, 24, 40), (20, 33, 8, 8)):
        same("pixels_in", pixels, area, 4, table)
    blocks = whole((3, 5, 192), LIMIT, random)
    for area in ((4, 4, 16, 32), (0, 0, 24, 40), (7, 1, 1, 3)):
        for grey in (False, True):
            expected = integer_reference.drawn_pixels(blocks, 8, area, 5, grey)
            assert np.array_equal(integer_native.drawn_pixels(blocks.numpy(), 8, area, 5, grey), expected)


@pytest.mark.parametrize("flags", [["-march=haswell"], ["-march=x86-64"]], ids=["avx2", "portable"])
def test_narrower_machines_give_the_same(
    threads: int, random: torch.Generator, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "x86_64" not in build.processor() or " avx2" not in build.processor() or threads != 1:
        pytest.skip("compiled for x86-64 with AVX2, and once")
    monkeypatch.setattr(build, "_state", build._State())
    monkeypatch.setenv("HPCM_CACHE", str(tmp_path))
    monkeypatch.setitem(
        build.FLAGS, "integer", tuple(flags[0] if f == "-march=native" else f for f in build.FLAGS["integer"])
    )
    assert ensure_built("integer"), build.last_error("integer")
    assert isinstance(build.function("integer", "hpcm_integer_linear"), ctypes._CFuncPtr)  # type: ignore[attr-defined]
    weights = linear_weights(35, 50, random, full=True)
    same("linear", (whole((3, 5, 35), LIMIT, random),), weights, leaky=True, factor=whole((50,), 9000, random))
    expand, project = linear_weights(36, 144, random), linear_weights(144, 36, random)
    same(
        "branch",
        (whole((40, 60, 36), LIMIT, random),),
        expand,
        project,
        factor=None,
        added=whole((40, 60, 36), 99, random),
    )
    bias, shift = whole((20,), 1 << 24, random, torch.int32), torch.arange(20, dtype=torch.int32)
    same("depthwise", whole((5, 11, 20), LIMIT, random), DepthwiseWeights(whole((5, 5, 20), 9000, random), bias, shift))
    same("layer_norm", whole((5, 11, 20), LIMIT, random), NormWeights(bias, bias.flip(0), 14, 3))
    q, k, v = (whole((7, 11, 48), LIMIT, random) for _ in range(3))
    same("window_attention", q, k, v, 2, 8, AttentionScale(23170, 36), EXPONENTIALS)
    factors = position_factors(77, torch.linspace(-0.02, 0.1, 48), torch.linspace(-2, 2, 48))
    same("bi_wkv", q // 8, v, factors, EXPONENTIALS)


# ---- plain against float arithmetic


def test_linear_is_a_rounded_linear_layer(random: torch.Generator) -> None:
    x, weights = whole((5, 7, 33), LIMIT, random), linear_weights(33, 20, random)
    weights = dataclasses.replace(weights, shift=torch.full((20,), 14, dtype=torch.int32))
    exact = (functional.linear(x.double(), weights.weight.double()) + weights.bias) / 2**14
    got = integer_reference.linear((x,), weights, leaky=True).double()
    assert (got - functional.leaky_relu(exact.clamp(-LIMIT, LIMIT), 0.01)).abs().max() <= 0.52


def test_depthwise_is_a_rounded_convolution(random: torch.Generator) -> None:
    x, kernel = whole((6, 7, 9), LIMIT, random), whole((5, 5, 9), 3000, random)
    bias, shift = whole((9,), 1 << 20, random, torch.int32), torch.full((9,), 15, dtype=torch.int32)
    exact = functional.conv2d(
        x.double().permute(2, 0, 1)[None], kernel.double().permute(2, 0, 1)[:, None], bias.double(), padding=2, groups=9
    )
    exact = (exact[0].permute(1, 2, 0) / 2**15).clamp(-LIMIT, LIMIT)
    assert (integer_reference.depthwise(x, DepthwiseWeights(kernel, bias, shift)) - exact).abs().max() <= 0.5


def test_layer_norm_is_a_rounded_layer_norm(random: torch.Generator) -> None:
    x, gamma = whole((5, 7, 96), LIMIT, random), whole((96,), 1 << 12, random, torch.int32)
    beta = whole((96,), 1 << 22, random, torch.int32)
    got = integer_reference.layer_norm(x, NormWeights(gamma, beta, 14, 96 * 96))
    exact = functional.layer_norm(x.double(), (96,), gamma.double() / 4, beta.double() / 2**14, eps=1.0)
    assert (got - exact).abs().max() <= 1


def test_gate_is_a_rounded_product_with_the_sigmoid(random: torch.Generator) -> None:
    control, x = whole((5, 7, 9), 3000, random), whole((5, 7, 9), LIMIT, random)
    exact = torch.sigmoid(control.double() / 256) * x
    assert (integer_reference.gate(control, x, SIGMOIDS) - exact).abs().max() <= 0.5 + LIMIT * (2**-15 + math.exp(-8))


def test_attention_is_rounded_softmax_attention(random: torch.Generator) -> None:
    q, k = (whole((8, 16, 48), 300, random) for _ in range(2))
    v = whole((8, 16, 48), LIMIT, random)
    got = integer_reference.window_attention(q, k, v, 2, 8, AttentionScale(1 << 10, 22), EXPONENTIALS)

    def windows(x: Tensor) -> Tensor:
        return x.double().reshape(8, 2, 8, 2, 24).permute(1, 3, 0, 2, 4).reshape(2, 2, 64, 24)

    exact = functional.scaled_dot_product_attention(windows(q), windows(k), windows(v), scale=2**-12 / 256)
    assert (windows(got) - exact).abs().max() <= 40  # distances are rounded to 1/256 and weights to 2^-12


def test_bi_wkv_is_rounded_bi_wkv4(random: torch.Generator) -> None:
    height, width, channels = 12, 9, 16
    k, v = whole((height, width, channels), 400, random), whole((height, width, channels), LIMIT, random)
    w = torch.linspace(-3, 6, channels).double() / (height * width)
    u = torch.linspace(-1, 2, channels).double()
    got = integer_reference.bi_wkv(k, v, position_factors(height * width, w, u), EXPONENTIALS)
    tokens = [x.double().reshape(1, -1, channels) for x in (k, v)]
    exact = biwkv4(w, u, tokens[0] / 256, tokens[1]).reshape(got.shape)
    assert (got - exact).abs().max() <= 8
