"""Bi-WKV4 against its formula, written out over all pairs of tokens in float64."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcm_codec.errors import UsageError
from hpcm_codec.ops import build, ensure_built, native, scan
from hpcm_codec.ops.biwkv4 import biwkv4

LENGTHS = (1, 2, 31, 33, 63, 96, 1536, 4096)
NAMES = ("w", "u", "k", "v")
Arguments = tuple[Tensor, Tensor, Tensor, Tensor]  # w, u, k, v


def dense(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula, O(T^2), float64; differentiable."""
    w, u, k, v = (x.double() for x in (w, u, k, v))
    position = torch.arange(k.shape[1], dtype=torch.float64, device=k.device)
    distance = (position[:, None] - position).abs() - 1
    exponent = k[:, None] - w * distance[:, :, None]
    own = torch.eye(k.shape[1], dtype=torch.bool, device=k.device)[:, :, None]
    exponent = torch.where(own, (u + k)[:, None], exponent)
    return (torch.softmax(exponent, dim=2) * v[:, None]).sum(dim=2)


def make(length: int, *, channels: int = 3, batch: int = 2, spread: float = 1.0, decay: float = 2.0) -> Arguments:
    """Seeded float32 arguments; k in about ±3 spread, w of both signs with |w|T about `decay`."""
    generator = torch.Generator().manual_seed(length)
    w = torch.linspace(-decay, decay, channels) / length
    u = torch.randn(channels, generator=generator)
    k, v = (torch.randn(batch, length, channels, generator=generator) for _ in range(2))
    return w, u, k * spread, v


@cache
def long_case(length: int, flat: bool) -> tuple[Arguments, Tensor]:
    """Arguments (flat: all keys 80, decay > 0) and the formula's result, worked out once for all backends."""
    w, u, k, v = make(length, channels=2, batch=1 if length > 1000 else 2)
    arguments = (w.abs(), u, torch.full_like(k, 80.0), v) if flat else (w, u, k, v)
    return arguments, dense(*arguments)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["torch", "cpp", "cuda"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each backend in turn, its fresh memory filled with NaN so that what is not written shows."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param != "torch" and not ensure_built(request.param):
        pytest.skip(f"not built: {build.last_error(request.param)}")
    monkeypatch.setenv("HPCM_OPS", request.param)
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield request.param
    torch.use_deterministic_algorithms(False)


def run(backend: str, arguments: Arguments) -> Tensor:
    """The operator on the backend's device, the result on the CPU."""
    device = "cuda" if backend == "cuda" else "cpu"
    return biwkv4(*(x.to(device) for x in arguments)).cpu()


def gradients(function: Callable[..., Tensor], arguments: Arguments, grad_y: Tensor) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_() for x in arguments]
    found = torch.autograd.grad(function(*leaves), leaves, grad_y)
    return dict(zip(NAMES, found, strict=True))


def labelled(name: str) -> Callable[[str], str]:
    """Puts the name of a gradient before the message of a failed comparison."""
    return lambda text: f"gradient of {name}: {text}"


@pytest.mark.parametrize("length", LENGTHS)
def test_forward_equals_the_formula_for_any_length(backend: str, length: int) -> None:
    arguments, expected = long_case(length, False)
    torch.testing.assert_close(run(backend, arguments).double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case", ["keys to 80", "equal keys of 80", "one-hot", "decay 1e4", "growth 1e4", "flat", "boost", "no self"]
)
def test_forward_equals_the_formula_in_extreme_cases(backend: str, case: str, dtype: torch.dtype) -> None:
    w, u, k, v = make(500, spread=26.0 if case == "keys to 80" else 1.0)
    if case == "keys to 80":
        k = k.clamp(-80, 80)
    elif case == "equal keys of 80":
        k = torch.full_like(k, 80.0)
    elif case == "one-hot":
        k = torch.full_like(k, -80.0)
        k[:, 123] = 80.0
    elif case == "flat":
        w = torch.zeros_like(w)
    elif case == "boost":
        u = torch.full_like(u, 200.0)
    elif case == "no self":
        u = torch.full_like(u, -200.0)
    else:
        w = torch.tensor([1.0, 0.5, 2.0]) * (1e4 if case == "decay 1e4" else -1e4)
    arguments: Any = tuple(x.to(dtype) for x in (w, u, k, v))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # float32: 3 ulp of an exponent of 80, as in the input
    torch.testing.assert_close(run(backend, arguments).double(), dense(*arguments), rtol=tolerance, atol=tolerance)


def test_long_flat_sequences_do_not_drift(backend: str) -> None:
    # Every step moves the anchor by about an ulp of the keys: a running maximum kept as a plain number would lose it.
    arguments, expected = long_case(2048, True)
    torch.testing.assert_close(run(backend, arguments).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 31, 33, 96, 500])
@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_gradients_equal_those_of_the_formula(backend: str, length: int, spread: float) -> None:
    arguments = make(length, spread=spread, decay=4.0)
    grad_y = torch.randn(arguments[2].shape, generator=torch.Generator().manual_seed(0))
    expected = gradients(dense, arguments, grad_y)
    found = gradients(lambda *x: run(backend, x), arguments, grad_y)
    for name in NAMES:
        absolute = 2e-5 * float(expected[name].abs().max()) + (
            1e-6 * length if name == "w" else 2e-7
        )  # w's terms carry distances up to T
        torch.testing.assert_close(found[name], expected[name], rtol=2e-5, atol=absolute, msg=labelled(name))


@pytest.mark.parametrize("case", ["decay", "growth", "shifted keys", "large values"])
def test_gradients_equal_those_of_the_formula_in_extreme_cases(backend: str, case: str) -> None:
    w, u, k, v = (x.double() for x in make(70))
    if case == "large values":
        v = v * 1e30
    elif case == "shifted keys":
        k = k + torch.tensor([700.0, -1e5, 1e8], dtype=k.dtype)
    else:
        w = torch.tensor([5.0, 50.0, 1e6], dtype=w.dtype) * (1 if case == "decay" else -1)
    grad_y = torch.randn(k.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = gradients(dense, (w, u, k, v), grad_y)
    found = gradients(lambda *x: run(backend, x), (w, u, k, v), grad_y)
    for name in NAMES:
        scale = float(expected[name].abs().max()) + 1e-9
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7 * scale, msg=labelled(name))


@pytest.mark.parametrize("length", [1, 3, 21])
def test_gradients_pass_gradcheck_in_float64(backend: str, length: int) -> None:
    if backend == "cuda":
        pytest.skip("the CUDA backend computes in float32")
    arguments = [x.double().requires_grad_() for x in make(length, channels=2, decay=3.0)]
    assert torch.autograd.gradcheck(biwkv4, arguments, atol=1e-6, rtol=1e-5)


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
LARGE = st.floats(-80, 80, width=32) | FINITE


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 2**31), corners=st.lists(LARGE, min_size=8, max_size=8))
def test_every_finite_input_gives_the_weighted_mean(length: int, seed: int, corners: list[float]) -> None:
    pool = torch.tensor(corners)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return pool[torch.randint(len(pool), shape, generator=generator)]

    arguments = (draw(4), draw(4), draw(1, length, 4), draw(1, length, 4))
    results = [scan.forward(*arguments)]
    if ensure_built("cpp"):
        results.append(native.cpp_forward(*arguments))
    assert all(torch.equal(results[0], other) for other in results)
    assert torch.isfinite(results[0]).all()
    lowest, highest = (getattr(arguments[3], name)(dim=1, keepdim=True) for name in ("amin", "amax"))
    # Products with weights below one lose their last digits when they become subnormal; found at v = 3.4e-37.
    slack = 1e-5 * torch.maximum(lowest.abs(), highest.abs()) + 4 * torch.finfo(torch.float32).tiny
    assert ((results[0] >= lowest - slack) & (results[0] <= highest + slack)).all()


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 2**31), magnitude=st.floats(0, 38), slope=st.floats(0, 38))
def test_the_right_token_wins_at_any_magnitude(length: int, seed: int, magnitude: float, slope: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.rand(1, length, 4, generator=generator) * 2 - 1 for _ in range(2))
    w, u = (torch.rand(4, generator=generator) * 2 - 1 for _ in range(2))
    k, u, w = k * 10**magnitude, u * 10**magnitude, w * 10**slope
    # Exponents are known to half an ulp, which for large ones decides between tokens: only clear winners are compared.
    position = torch.arange(length, dtype=torch.float64)
    distance = ((position[:, None] - position).abs() - 1)[:, :, None]
    own = torch.eye(length, dtype=torch.bool)[:, :, None]
    exponent = torch.where(own, (u.double() + k.double())[:, None], k.double()[:, None] - w.double() * distance)
    best = exponent.topk(min(2, length), dim=2).values
    uncertainty = 1e-6 * (k.abs().max() + u.abs().max() + w.abs().max() * length).double()
    clear = best[:, :, 0] - best[:, :, -1] > 100 + uncertainty if length > 1 else torch.ones(1, 1, 4, dtype=torch.bool)
    y, expected = scan.forward(w, u, k, v).double(), dense(w, u, k, v)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y[clear], expected[clear], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [1e-30, 3.4e38, -3.4e38])
def test_values_near_the_limits_of_float32_survive(backend: str, value: float) -> None:
    w, u, k, _ = make(100)
    y = run(backend, (w, u, k, torch.full_like(k, value)))
    torch.testing.assert_close(y.double(), torch.full_like(y, value).double(), rtol=1e-6, atol=0)


def test_nan_is_not_hidden(backend: str) -> None:
    w, u, k, v = make(40)
    k[0, 7, 1] = float("nan")
    y = run(backend, (w, u, k, v))
    assert y[0, :, 1].isnan().all()
    assert torch.isfinite(y[1]).all() and torch.isfinite(y[0, :, [0, 2]]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 8, 9, 64, 65, 257, 1000])
def test_backends_give_equal_bits(
    backend: str, length: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, u, k, v = make(length, channels=37, spread=5.0)
    arguments = (w, u, k.to(dtype), v.to(dtype))
    y = run(backend, arguments)
    monkeypatch.setenv("HPCM_OPS", "torch")
    assert torch.equal(y, biwkv4(*arguments))


@pytest.mark.parametrize("length", [1, 64, 300])
def test_what_a_cuda_thread_computes_is_what_the_vectorised_build_computes(length: int) -> None:
    if not ensure_built("cpp"):
        pytest.skip(f"not built: {build.last_error('cpp')}")
    arguments = make(length, channels=21, spread=5.0)
    grad_y = torch.randn_like(arguments[2])
    assert torch.equal(native.cpp_forward(*arguments), native.cpp_forward(*arguments, lanes="_scalar"))
    vector, scalar = (native.cpp_backward(*arguments, grad_y, lanes=lanes) for lanes in ("", "_scalar"))
    for name, a, b in zip(NAMES, vector, scalar, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("shape", [(1, 1000, 37), (3, 333, 192), (1, 4096, 67)])
def test_thread_count_changes_no_bit(backend: str, shape: tuple[int, int, int]) -> None:
    arguments = make(shape[1], channels=shape[2], batch=shape[0])
    grad_y = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        found = gradients(lambda *x: run(backend, x), arguments, grad_y)
        results.append([run(backend, arguments), *found.values()])
    for other in results[1:]:
        for name, a, b in zip(("y", *NAMES), results[0], other, strict=True):
            assert torch.equal(a, b), name


def test_the_pure_path_works_in_slabs_without_changing_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = make(200, channels=50, batch=3)
    whole, gradient = scan.forward(*arguments), scan.backward(*arguments, arguments[3])
    monkeypatch.setitem(scan.SLAB_ELEMENTS, "cpu", 200 * 16)
    assert len(scan.slabs(arguments[2])) > 3
    assert torch.equal(scan.forward(*arguments), whole)
    for a, b in zip(scan.backward(*arguments, arguments[3]), gradient, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_and_gradients_have_the_dtypes_of_their_arguments(backend: str, dtype: torch.dtype) -> None:
    w, u, k, v = make(50)
    arguments = (w, u, k.to(dtype), v.to(dtype))
    y = run(backend, arguments)
    assert y.dtype == dtype and y.is_contiguous()
    expected = dense(*arguments)
    torch.testing.assert_close(
        y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3 if dtype != torch.float64 else 1e-6
    )
    found = gradients(lambda *x: run(backend, x), arguments, torch.ones_like(y))
    assert [found[name].dtype for name in NAMES] == [torch.float32, torch.float32, dtype, dtype]


def test_strided_inputs_give_what_contiguous_ones_give(backend: str) -> None:
    w, u, k, v = make(60, channels=6)
    strided_k = k.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strided_v = torch.stack([v, v], dim=-1)[..., 0]
    strided_w = torch.stack([w, w], dim=-1)[:, 0]
    assert not strided_k.is_contiguous() and not strided_v.is_contiguous() and not strided_w.is_contiguous()
    assert torch.equal(run(backend, (strided_w, u, strided_k, strided_v)), run(backend, (w, u, k, v)))
    grad_y = torch.ones(1).expand(k.shape)  # a stride of 0, as sum().backward() makes it
    expected = gradients(lambda *x: run(backend, x), (w, u, k, v), grad_y.contiguous())
    found = gradients(lambda *x: run(backend, x), (w, u, strided_k, v), grad_y)
    assert all(torch.equal(expected[name], found[name]) for name in NAMES)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty_inputs_give_empty_results(backend: str, shape: tuple[int, int, int]) -> None:
    w, u = torch.ones(shape[2]), torch.ones(shape[2])
    found = gradients(lambda *x: run(backend, x), (w, u, torch.ones(shape), torch.ones(shape)), torch.ones(shape))
    assert found["k"].shape == shape and not found["w"].any()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k": torch.ones(4, 3)}, ValueError, r"k must be \(B, T, C\)"),
        ({"v": torch.ones(2, 5, 3)}, ValueError, "v must have k's shape"),
        ({"w": torch.ones(4)}, ValueError, r"w must be \(C,\)"),
        ({"u": torch.ones(1)}, ValueError, r"u must be \(C,\)"),
        ({"u": torch.ones(3, device="meta")}, (ValueError, RuntimeError), "device"),
        ({"w": torch.ones(3, dtype=torch.float16)}, TypeError, "w must be float32 or float64"),
        ({"u": torch.ones(3, dtype=torch.float64)}, TypeError, "must agree"),
        ({"v": torch.ones(2, 4, 3, dtype=torch.float64)}, TypeError, "must agree"),
        ({"k": torch.ones(2, 4, 3, dtype=torch.int64)}, TypeError, "k must be float16"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], error: type[Exception], words: str) -> None:
    arguments = {"w": torch.ones(3), "u": torch.ones(3), "k": torch.ones(2, 4, 3), "v": torch.ones(2, 4, 3), **change}
    with pytest.raises(error, match=words):
        biwkv4(**arguments)


def test_a_meaningless_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCM_OPS", "fast")
    with pytest.raises(UsageError, match="HPCM_OPS=fast"):
        biwkv4(*make(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_passes(backend: str, dtype: torch.dtype) -> None:
    device = "cuda" if backend == "cuda" else "cpu"
    w, u, k, v = make(20)
    arguments: Any = tuple(x.to(device).requires_grad_() for x in (w, u, k.to(dtype), v.to(dtype)))
    torch.library.opcheck(torch.ops.hpcm.biwkv4.default, arguments)
    detached = tuple(x.detach() for x in arguments)
    torch.library.opcheck(torch.ops.hpcm.biwkv4_backward.default, (*detached, torch.ones_like(detached[2])))


def test_torch_compile_traces_it_forward_and_backward(backend: str) -> None:
    device = "cuda" if backend == "cuda" else "cpu"

    def block(*arguments: Tensor) -> Tensor:
        return torch.sigmoid(biwkv4(*arguments)) * 2

    arguments: Any = tuple(x.to(device) for x in make(20))
    grad_y = torch.ones_like(arguments[2])
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    expected, found = gradients(block, arguments, grad_y), gradients(compiled, arguments, grad_y)
    assert all(torch.equal(expected[name], found[name]) for name in NAMES)


def test_concurrent_calls_agree(backend: str) -> None:
    arguments = make(300, channels=20)
    expected = run(backend, arguments)
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(run(backend, arguments))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(expected, result) for result in results)


def test_nothing_is_read_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("checked on the meta device, where any read fails; a GPU is not needed")
    monkeypatch.setitem(scan.SLAB_ELEMENTS, "meta", 1 << 12)
    w, u, k, v = (x.to("meta") for x in make(100))
    assert scan.forward(w, u, k, v).shape == (2, 100, 3)
    assert scan.backward(w, u, k, v, grad_y=v)[0].shape == (3,)
