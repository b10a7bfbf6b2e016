"""Several tiles at a time: the same files and pixels, in order, and no more at once than asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from conftest import small_photograph
from hpcm_codec.bitstream import container
from hpcm_codec.codec import Codec
from hpcm_codec.errors import CorruptStreamError
from hpcm_codec.images import Picture
from hpcm_codec.system.parallel import in_order
from hpcm_codec.tiles.memory import decoding_bytes, encoding_bytes

WIDTH, HEIGHT = 1100, 1040  # 2×2 tiles


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_few_are_worked_on_at_once(workers: int) -> None:
    taken, at_once, most, lock, meeting = 0, 0, 0, threading.Lock(), threading.Barrier(workers)

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(12):
            taken += 1
            yield number

    def work(number: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        if number < workers:
            meeting.wait(timeout=60)  # all workers are at work together
        time.sleep(0.002 * (12 - number))  # the first take longest
        with lock:
            at_once -= 1
        return number

    results = []
    for result in in_order(work, items(), workers):
        results.append(result)
        assert taken <= len(results) + workers - 1
    assert results == list(range(12)) and most == workers


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_is_raised_in_its_turn(workers: int) -> None:
    done = []

    def work(number: int) -> int:
        if number == 4:
            raise ValueError("four")
        done.append(number)
        return number

    results = in_order(work, range(100), workers)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="four"):
        next(results)
    assert len(done) <= 4 + workers  # and what came after is not begun


@pytest.fixture
def three_workers(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> Codec:
    monkeypatch.setattr(codec, "tile_workers", 3)
    return codec


def test_files_and_pixels_do_not_depend_on_the_tiles_coded_at_a_time(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Picture(small_photograph(WIDTH, HEIGHT))
    data = codec.encode(picture, 40)
    pixels, region = codec.decode(data).pixels, codec.decode_region(data, (500, 480, 90, 100)).pixels
    threads: set[int] = set()
    plain = codec._decode_tile

    def noting(*arguments):
        threads.add(threading.get_ident())
        return plain(*arguments)

    monkeypatch.setattr(codec, "_decode_tile", noting)
    monkeypatch.setattr(codec, "tile_workers", 3)
    assert codec.encode(picture, 40) == data
    assert np.array_equal(codec.decode(data).pixels, pixels)
    assert len(threads) > 1 and threading.get_ident() not in threads
    assert np.array_equal(codec.decode_region(data, (500, 480, 90, 100)).pixels, region)


def test_a_damaged_tile_is_named_in_every_thread(three_workers: Codec) -> None:
    stream = container.parse_stream(three_workers.encode(Picture(small_photograph(WIDTH, HEIGHT)), 5))
    tiles = list(stream.tiles)
    tiles[2] = replace(tiles[2], symbol_check=tiles[2].symbol_check ^ 1)
    data = container.write_stream(container.HpcmStream(stream.header, tuple(tiles), {}))
    with pytest.raises(CorruptStreamError, match="tile 2 does not decode"):
        three_workers.decode(data)


def test_the_estimate_of_memory_grows_with_the_tiles_coded_at_a_time_and_no_further_than_there_are_tiles() -> None:
    for needed in (encoding_bytes, decoding_bytes):
        one, two = (needed(4096, 4096, 0, tiles=tiles) for tiles in (1, 2))
        assert two - one > 250_000_000
        assert needed(700, 500, 0, tiles=8) == needed(700, 500, 0)
