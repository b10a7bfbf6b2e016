"""Transfers between the device and the rANS coder: few bytes, all symbols exact, and the same files with and without a coding thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from conftest import needs_cuda, small_photograph
from hpcm_codec.codec import Codec
from hpcm_codec.engines import ports
from hpcm_codec.engines.ports import EncoderPort
from hpcm_codec.entropy.distributions import build_tables
from hpcm_codec.entropy.handover import BEYOND, SHORT_LIMIT, CodedStep, to_device, to_host
from hpcm_codec.entropy.rans_decoder import RansDecoder
from hpcm_codec.entropy.rans_encoder import LARGEST_SYMBOL, CoderTables
from hpcm_codec.errors import HpcmError
from hpcm_codec.images import Picture
from hpcm_codec.model import schedule

TABLES = CoderTables(build_tables())


@pytest.mark.parametrize("largest", [0, 5, SHORT_LIMIT - 1, SHORT_LIMIT, SHORT_LIMIT + 1, 70_000, LARGEST_SYMBOL])
@pytest.mark.parametrize("sign", [-1, 1])
def test_symbols_arrive_whole_however_large(largest: int, sign: int) -> None:
    residual = torch.tensor([[[0.4, -3.5, sign * largest], [2.5, 1e-9, -7.6]]])
    step = CodedStep(residual, torch.tensor([[[0, 1, 63], [7, 255, 3]]], dtype=torch.int32))
    symbols, levels = step.wait()
    assert symbols.tolist() == [0, -4, sign * largest, 2, 0, -8]
    assert (symbols.dtype == np.int16) == (largest < SHORT_LIMIT)
    assert levels.tolist() == [0, 1, 63, 7, 255, 3]
    assert step.symbols.dtype == torch.int32 and step.symbols.shape == residual.shape
    assert step.symbols.flatten().tolist() == symbols.tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e9, LARGEST_SYMBOL + 2.0])
def test_what_cannot_be_coded_is_seen_by_its_size(value: float) -> None:
    symbols, _ = CodedStep(torch.tensor([1.0, value]), torch.zeros(2, dtype=torch.int32)).wait()
    assert LARGEST_SYMBOL < int(symbols[1]) <= BEYOND


def test_strided_indexes_and_symbols_keep_their_order() -> None:
    levels = torch.arange(6, dtype=torch.int32).reshape(2, 3).T
    assert to_host(levels).tolist() == [0, 3, 1, 4, 2, 5]
    symbols, indexes = CodedStep(levels.float() * 10, levels).wait()
    assert symbols.tolist() == [0, 30, 10, 40, 20, 50] and indexes.tolist() == [0, 3, 1, 4, 2, 5]


def encoded_in(
    monkeypatch: pytest.MonkeyPatch, background: bool, latents: torch.Tensor
) -> tuple[dict[str, bytes], int]:
    """A port's streams and symbol check, of latents 1×16×8×8 under changing tables and no means."""
    monkeypatch.setattr(ports, "in_background", lambda device: background)
    port = EncoderPort(latents, TABLES)
    for scale in schedule.scales(16):
        for number, step in enumerate(scale.steps):
            port.begin(scale, number + 1)
            size = step.take(schedule.split(latents)[scale.name]).shape
            port.exchange(step, torch.full(size, 6 * number + 3, dtype=torch.int32), torch.zeros(size))
    return port.streams(), port.symbol_check


def test_a_thread_codes_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = 40 * torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    latents[0, 3, 2, 1], latents[0, 9, 5, 6] = 40_000, -12_345_678
    at_once = encoded_in(monkeypatch, False, latents)
    assert encoded_in(monkeypatch, True, latents) == at_once
    decoder = RansDecoder(TABLES, at_once[0]["s1"])
    step = schedule.scales(16)[0].steps[0]
    coded = step.take(schedule.split(latents)["s1"]).flatten().round().int()
    assert decoder.decode(np.full(len(coded), 3, np.uint8)).tolist() == coded.tolist()


def test_errors_of_the_thread_are_the_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.zeros(1, 16, 8, 8)
    latents[0, 0, 0, 0] = float("nan")
    for background in (False, True):
        with pytest.raises(HpcmError, match="too large to be coded, or not a number"):
            encoded_in(monkeypatch, background, latents)


def test_the_encoder_does_not_wait_for_its_rans_coder(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Picture(small_photograph())
    expected = codec.encode(picture, 60)
    monkeypatch.setattr(ports, "in_background", lambda device: True)
    walked, streams, wait = threading.Event(), EncoderPort.streams, CodedStep.wait

    def streams_after_all_steps(port: EncoderPort) -> dict[str, bytes]:
        walked.set()
        return streams(port)

    def wait_for_the_end_of_the_walk(step: CodedStep) -> object:
        assert walked.wait(60), "the walk waits for the thread"
        return wait(step)

    monkeypatch.setattr(EncoderPort, "streams", streams_after_all_steps)
    monkeypatch.setattr(CodedStep, "wait", wait_for_the_end_of_the_walk)
    assert codec.encode(picture, 60) == expected


@needs_cuda
@pytest.mark.parametrize("largest", [100, SHORT_LIMIT - 1, SHORT_LIMIT, LARGEST_SYMBOL])
def test_a_gpu_passes_on_the_same_numbers(largest: int) -> None:
    residual = torch.linspace(-largest, largest, 1001)
    levels = torch.arange(1001, dtype=torch.int32) % 64
    on_gpu = CodedStep(residual.cuda(), levels.cuda())
    expected = CodedStep(residual, levels)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(on_gpu.wait(), expected.wait(), strict=True))
    assert torch.equal(on_gpu.symbols.cpu(), expected.symbols)
    assert np.array_equal(to_host(levels.cuda()), levels.numpy())
    symbols = expected.symbols.numpy()
    assert torch.equal(to_device(symbols, torch.device("cuda")).cpu(), expected.symbols)
