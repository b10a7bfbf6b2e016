"""What a GPU will do, without one: no waiting inside a step, and walks replayed from what was captured, or else plain code.

The walk runs on torch's meta device, where a value that Python looks at, or a tensor of the host's, is an error. CUDA graphs are stood in
for by a recorder of torch's operators, which like them replays the same work on the same memory, Python unseen.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import ROOT, needs_cuda, small_photograph, torch_engine
from hpcm_codec.codec import Codec
from hpcm_codec.engines import ports
from hpcm_codec.engines.graphs import CHECKED_USES, KEPT_SIZES, PLAIN_USES, SETTING, WalkGraphs, graphs_for
from hpcm_codec.engines.loading import exact_network
from hpcm_codec.engines.ports import DecoderPort, EncoderPort
from hpcm_codec.entropy import handover
from hpcm_codec.errors import CorruptStreamError, UsageError
from hpcm_codec.images import Picture
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.ops import powers
from hpcm_codec.weights.checkpoints import Checkpoint, load_checkpoint

sys.path.append(str(ROOT / "fuzz"))
from small_model import checkpoint

TRANSFORMS = ("g_a", "h_a", "g_s")
UNTIL_VERIFIED = PLAIN_USES + CHECKED_USES
GPU = torch.device("cuda", 0)
ELSEWHERE = torch.device("meta")  # like a GPU not the host, and without values that Python could look at
WAITING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "allclose", "unique")
STEPS = 11


@pytest.fixture(scope="module")
def small() -> str:
    return checkpoint()


@pytest.fixture(autouse=True)
def operators_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a GPU runs, and that a recorder of torch's operators sees."""
    monkeypatch.setenv("HPCM_OPS", "torch")


# ------------------------------------------------------------------------------------------------------------- waiting


class Watch(TorchDispatchMode):
    """Refuses whatever makes a host wait for its GPU, and every copy between the two."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # on a GPU, unlike the others, it makes a tensor of its number on the host and copies that
        assert not (func._schema.name == "aten::where" and func._overloadname.startswith("Scalar")), "a number in where"
        if func._can_decompose():  # what an operator is made of may copy where it does not show
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        assert func._schema.name.partition("::")[2] not in WAITING, f"{func} waits for the device"
        places = {leaf.device for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        assert len(places) < 2, f"{func} copies between {places}"
        return result


class Exchanges:
    """Stands in for the copies between device and host, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queued = self.waited = 0
        monkeypatch.setattr(handover, "HostCopy", self._queue)
        monkeypatch.setattr(ports, "to_host", self._wait)
        monkeypatch.setattr(EncoderPort, "_code_symbols", lambda *_: None)
        monkeypatch.setattr(DecoderPort, "_open", lambda *_: None)
        monkeypatch.setattr(DecoderPort, "_read", lambda _, levels: self._read(levels))

    def _queue(self, packed: Tensor) -> None:
        assert packed.dtype == torch.uint8 and packed.device == ELSEWHERE
        self.queued += 1

    def _wait(self, levels: Tensor) -> None:
        assert levels.flatten().to(torch.uint8).device == ELSEWHERE
        self.waited += 1

    def _read(self, levels: Tensor) -> Tensor:
        self._wait(levels)
        return torch.zeros(levels.shape, dtype=torch.int32, device=ELSEWHERE)


@pytest.mark.parametrize("profile", ["exact", "float"])
@pytest.mark.parametrize("way", ["encode", "decode"])
def test_a_step_waits_only_for_its_exchange_of_symbols(
    small: str, profile: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(small)
    network = exact_network(loaded.as_stored(), compiled=False)
    exchanges = Exchanges(monkeypatch)
    powers._powers_on(ELSEWHERE)  # copied there once in a process
    config = loaded.config
    with torch.device(ELSEWHERE):
        model = HPCM(config).eval()
        rate = torch.ones(1, config.rate_levels)
        hyper = torch.zeros(1, config.hyper_channels, 2, 3)
        latents = torch.zeros(1, config.latent_channels, 8, 12)
        position = torch.zeros(2, 2, dtype=torch.int64)
    network.to(ELSEWHERE)
    tables: Any = None
    with torch.inference_mode(), Watch():
        port: Any = EncoderPort(latents, tables) if way == "encode" else DecoderPort({}, tables, ELSEWHERE)
        if profile == "exact":
            levels, mean = network.hyper_distribution(position)
            symbols = port.code_hyper(*((hyper, levels, mean) if way == "encode" else (hyper.shape, levels)))
            decoded = network.real_latents(network.code_latents(symbols, position, port))
        else:
            decoded = model.code_latents(hyper, rate, port)
    assert decoded.device == ELSEWHERE and decoded.shape == latents.shape
    hyper_too = 1 if profile == "exact" else 0
    counted = (exchanges.queued, exchanges.waited)
    assert counted == ((STEPS + hyper_too, 0) if way == "encode" else (0, STEPS + hyper_too))


@pytest.mark.parametrize(
    "work",
    [lambda x: x.sum().item(), lambda x: bool((x > 0).all()), lambda x: x[x > 0], lambda x: x.cpu(),
     lambda x: x + torch.ones(3).to(x.device), lambda x: torch.where(x > 0, x, 0), lambda x: torch.zeros(3).copy_(x)],
)  # fmt: skip
def test_the_watch_detects_waiting(work: Callable[[Tensor], object]) -> None:
    x = torch.zeros(3, device=ELSEWHERE)
    with torch.inference_mode(), Watch(), pytest.raises((AssertionError, RuntimeError)):
        work(x)


# -------------------------------------------------------------------------------------------------------------- graphs


class Recorder(TorchDispatchMode):
    """Captures operators with the memory they read and write. Unlike a GPU's capture it runs them too, on whatever that memory holds."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = (
            {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(part) if isinstance(leaf, Tensor)}
            for part in ((args, kwargs), result)
        )
        if func._schema.is_mutable or written - read:  # views are no work
            self.work.append((func, args, kwargs or {}, result))
        return result

    def begin(self) -> None:
        self.__enter__()

    def end(self) -> None:
        self.__exit__(None, None, None)
        # other numbers in all memory that was written: a replay has to bring them itself
        for func, _, _, result in self.work:
            if not func._schema.is_mutable:
                for tensor in tree_leaves(result):
                    tensor.zero_()

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.work:
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    old.copy_(new)


class Recorders:
    """A graph backend of recorders; `falsify` spoils a segment before it is replayed."""

    def __init__(self, falsify: Callable[[list[Recorder]], None] | None = None) -> None:
        self.walks: list[list[Recorder]] = []
        self._falsify = falsify

    @contextmanager
    def capturing(self) -> Iterator[Callable[[], Recorder]]:
        segments: list[Recorder] = []
        self.walks.append(segments)

        def new_segment() -> Recorder:
            segments.append(Recorder())
            return segments[-1]

        yield new_segment
        if self._falsify is not None:
            self._falsify(segments)


def without_integer_transforms(small: str) -> Checkpoint:
    """The checkpoint as a GPU uses it: the walk in integers, the transforms in floating point."""
    checkpoint = load_checkpoint(small)
    assert checkpoint.exact is not None
    kept = {name: units for name, units in checkpoint.exact.fractions.items() if not name.startswith(TRANSFORMS)}
    assert len(kept) < len(checkpoint.exact.fractions)
    return dataclasses.replace(checkpoint, exact=dataclasses.replace(checkpoint.exact, fractions=kept))


def with_graphs(small: str, backend: Any, profile: str = "exact") -> Codec:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPCM_OPS", "torch")  # graphs are of tensors
        codec = Codec(without_integer_transforms(small), "cpu", profile)
    torch_engine(codec).graphs = WalkGraphs(backend)
    return codec


def is_enabled(codec: Codec) -> bool:
    graphs = torch_engine(codec).graphs
    assert graphs is not None
    return graphs.enabled


def picture(seed: int, width: int = 70, height: int = 60) -> Picture:
    return Picture(small_photograph(width, height, seed))


@pytest.mark.parametrize("profile", ["exact", "float"])
def test_replayed_walks_give_the_same_files_and_pictures_at_every_quality(small: str, profile: str) -> None:
    plain, backend = Codec(without_integer_transforms(small), "cpu", profile), Recorders()
    replaying = with_graphs(small, backend, profile)
    for use, quality in enumerate((50, 20, 90, 0, 100)):
        data = plain.encode(picture(use), quality)
        verified = use >= UNTIL_VERIFIED
        before = [segment.replays for walk in backend.walks for segment in walk]
        assert replaying.encode(picture(use), quality) == data
        after = [segment.replays for walk in backend.walks for segment in walk]
        assert len(after) == (0 if use < PLAIN_USES else STEPS + 1)  # one size, captured once, whatever the quality
        assert not verified or after == [count + 1 for count in before]
        if verified:
            assert np.array_equal(replaying.decode(data).pixels, plain.decode(data).pixels)
    assert is_enabled(replaying)


def test_a_damaged_file_is_refused_by_replays_too(small: str) -> None:
    from hpcm_codec.bitstream import container

    codec = with_graphs(small, Recorders())
    data = codec.encode(picture(1), 60)
    stream = container.parse_stream(data)
    tile = stream.tiles[0]
    wrong = container.TileStreams(tile.hyper, tile.s1, tile.s2, tile.s3, symbol_check=tile.symbol_check ^ 1)
    forged = container.write_stream(container.HpcmStream(stream.header, (wrong,), {}))
    for _ in range(UNTIL_VERIFIED + 1):
        with pytest.raises(CorruptStreamError, match="does not decode"):
            codec.decode(forged)


def wrong(segments: list[Recorder]) -> None:
    """One operator in the middle of the walk is forgotten."""
    work = segments[STEPS // 2].work
    del work[next(i for i, (func, *_) in enumerate(work) if func._schema.name == "aten::clamp")]


def fail(segments: list[Recorder]) -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(("falsify", "reason"), [(wrong, "other numbers"), (fail, "not permitted when stream")])
def test_graphs_with_wrong_results_or_errors_are_switched_off_with_one_warning(
    small: str, falsify: Any, reason: str
) -> None:
    plain, codec = Codec(without_integer_transforms(small), "cpu"), with_graphs(small, Recorders(falsify))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for use in range(UNTIL_VERIFIED + 1):
            assert codec.encode(picture(use), 10 * use) == plain.encode(picture(use), 10 * use)
    about_graphs = [str(one.message) for one in warned if SETTING in str(one.message)]
    assert len(about_graphs) == 1 and reason in about_graphs[0]
    assert not is_enabled(codec)


def test_a_capture_that_depends_on_its_tile_is_detected(small: str) -> None:
    """As where Python has read a quality: the tile that was captured agrees, the next one does not."""

    def constant(segments: list[Recorder]) -> None:
        segments[0].replay()
        of_levels = [func._schema.name == "aten::index" for func, *_ in segments[0].work]
        assert any(of_levels)
        segments[0].work[:] = [one for one, left_out in zip(segments[0].work, of_levels, strict=True) if not left_out]

    codec, plain = with_graphs(small, Recorders(constant)), Codec(without_integer_transforms(small), "cpu")
    walks = torch_engine(codec).graphs
    assert walks is not None
    for _ in range(PLAIN_USES + 1):
        codec.encode(picture(0), 30)
    assert walks.enabled
    with pytest.warns(RuntimeWarning, match="other numbers"):
        assert codec.encode(picture(1), 90) == plain.encode(picture(1), 90)
    assert not walks.enabled


def test_sizes_that_were_used_last_are_kept() -> None:
    walks = WalkGraphs(Recorders())

    def walk(port: Any, x: Tensor) -> Tensor:
        return x + 1

    port: Any = None
    for size in range(KEPT_SIZES + 3):
        for _ in range(UNTIL_VERIFIED + 1):
            x = torch.rand(size + 1)
            assert torch.equal(walks.run(size, walk, port, x), x + 1)
        walks.run(0, walk, port, torch.rand(1))
    assert len(walks._sizes) == KEPT_SIZES and {0, KEPT_SIZES + 2} <= set(walks._sizes) and 1 not in walks._sizes
    assert walks.enabled


def test_a_walk_in_use_is_left_alone() -> None:
    """Its memory is one caller's: another one, in a thread or inside the first, gets plain code."""
    walks = WalkGraphs(Recorders())
    inside: list[Tensor] = []
    nobody: Any = None

    def walk(port: Any, x: Tensor) -> Tensor:
        if port is not None:
            inside.append(walks.run("key", walk, nobody, x + 10))
        return x + 1

    for _ in range(UNTIL_VERIFIED):
        walks.run("key", walk, nobody, torch.zeros(2))
    assert torch.equal(walks.run("other", walk, "port", torch.zeros(2)), torch.ones(2))  # type: ignore[arg-type]
    assert torch.equal(inside[0], torch.full((2,), 11.0))


def test_the_setting_switches_graphs_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graphs_for(torch.device("cpu")) is None
    assert graphs_for(GPU) is not None
    monkeypatch.setenv(SETTING, "0")
    assert graphs_for(GPU) is None
    monkeypatch.setenv(SETTING, "perhaps")
    with pytest.raises(UsageError, match=SETTING):
        graphs_for(GPU)


@needs_cuda
@pytest.mark.parametrize("profile", ["exact", "float"])
def test_cuda_graphs_replay_the_default_model(codec: Codec, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCM_OPS")
    on_gpu = Codec(load_checkpoint(), "cuda", profile)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for use in range(UNTIL_VERIFIED + 2):
            data = on_gpu.encode(picture(use), 20 * use)
            decoded = on_gpu.decode(data).pixels  # by the second use from graphs; refuses symbols that differ
            if profile == "exact":
                assert on_gpu.symbol_digest(data) == codec.symbol_digest(data)
                assert np.abs(decoded.astype(int) - codec.decode(data).pixels).max() <= 1
    graphs = torch_engine(on_gpu).graphs
    assert graphs is not None and graphs.enabled
    assert any(size.captured is not None and not size.captured.checks_left for size in graphs._sizes.values())
