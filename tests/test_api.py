"""`hpcm_codec.encode` and `decode`: arrays and tensors in and out, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hpcm_codec
import hpcm_codec.api
import hpcm_codec.pillow
from conftest import needs_cuda, small_photograph
from hpcm_codec import Codec, Picture
from hpcm_codec.bitstream.container import parse_header
from hpcm_codec.constants import DEFAULT_MODEL
from hpcm_codec.engines.loading import Engines, load_engines
from hpcm_codec.errors import CorruptStreamError, FileError, HpcmError, MemoryLimitError, UsageError
from hpcm_codec.weights.families import Family
from hpcm_codec.weights.registry import shipped_checkpoints
from hpcm_codec.weights.stored import StoredCheckpoint, read_models

RGB = small_photograph(40, 30)
ALPHA = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
CHANNELS = {
    1: RGB[..., :1].copy(),
    2: np.dstack([RGB[..., 0], ALPHA]),
    3: RGB,
    4: np.dstack([RGB, ALPHA]),
}
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_same_picture_is_the_same_file_however_it_is_given(codec: Codec, channels: int) -> None:
    array = CHANNELS[channels]
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    assert image.mode == MODES[channels]
    given: list[Any] = [
        array,
        array / 255,
        (array / 255).astype(np.float32),
        tensor,
        tensor / 255,
        tensor.double() / 255,
        image,
    ]
    if channels == 1:
        given += [array[..., 0], array[..., 0] / 255]
    files = [hpcm_codec.encode(one, 30, codec) for one in given]
    assert len(set(files)) == 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_and_tensors_come_out_as_they_are_documented(codec: Codec, channels: int) -> None:
    data = hpcm_codec.encode(CHANNELS[channels], 30, codec)
    image = hpcm_codec.decode(data, codec)
    array = hpcm_codec.decode(data, codec, output="numpy")
    tensor = hpcm_codec.decode(data, codec, output="torch")
    assert image.mode == MODES[channels] and image.size == (40, 30)
    assert array.dtype == np.uint8 and array.shape == (30, 40, channels) and array.flags.writeable
    assert tensor.dtype == torch.uint8 and tensor.shape == (channels, 30, 40) and tensor.is_contiguous()
    assert np.array_equal(np.asarray(image).reshape(array.shape), array)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), array)
    if channels in (2, 4):
        assert np.array_equal(array[..., -1], ALPHA)


def test_tensors_that_are_no_plain_memory_are_taken_too(codec: Codec) -> None:
    tensor = torch.from_numpy(RGB).permute(2, 0, 1).float() / 255
    expected = hpcm_codec.encode(tensor, 30, codec)
    assert hpcm_codec.encode(tensor.clone().requires_grad_(), 30, codec) == expected
    assert hpcm_codec.encode(tensor.flip(1).flip(1), 30, codec) == expected
    assert hpcm_codec.encode(np.flipud(np.flipud(RGB)), 30, codec) == expected
    for narrow in (torch.float16, torch.bfloat16):  # which do not hold all 256 levels
        assert hpcm_codec.decode(hpcm_codec.encode(tensor.to(narrow), 30, codec), codec).size == (40, 30)


@needs_cuda
def test_tensors_on_a_gpu_are_taken_too(codec: Codec) -> None:
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    assert hpcm_codec.encode(tensor.cuda(), 30, codec) == hpcm_codec.encode(tensor, 30, codec)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((4, 5, 5), np.uint8), "an image array is H×W×C of 1 to 4 channels, not 4×5×5; put the channels last"),
        (np.zeros((9, 5, 5), np.uint8), "not 9×5×5$"),
        (np.zeros((2, 4, 5, 3), np.uint8), "an image array is H×W×C or H×W, not 2×4×5×3"),
        (np.zeros((0, 5, 3), np.uint8), "not 0×5×3"),
        (np.zeros((), np.uint8), "not a single number"),
        (np.zeros((4, 5, 3), np.int32), "an image array holds uint8 or floating point samples, not int32"),
        (np.zeros((4, 5, 3), bool), "not bool"),
        (np.full((4, 5, 3), np.nan), "an image array holds samples that are not numbers"),
        (np.full((4, 5, 3), np.inf), "from 0 to 1, not from inf to inf"),
        (np.full((4, 5, 3), 200.0), "from 0 to 1, not from 200 to 200; clamp them, or divide those of 0 to 255 by 255"),
        (np.full((4, 5, 3), -1e-3), "from 0 to 1, not from -0.001"),
        (torch.zeros(4, 5), "an image tensor is C×H×W, not 4×5$"),
        (torch.zeros(1, 3, 4, 5), "not 1×3×4×5; encode the pictures of a batch one by one"),
        (torch.zeros(7, 5, 3), "of 1 to 4 channels, not 7×5×3; put the channels first: tensor.permute"),
        (torch.zeros(3, 0, 5), "not 3×0×5"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), "an image tensor holds uint8 or floating point samples, not int64"),
        (torch.zeros(3, 4, 5, dtype=torch.complex64), "not complex64"),
        (torch.full((3, 4, 5), float("nan")), "an image tensor holds samples that are not numbers"),
        (torch.full((3, 4, 5), 1.5, dtype=torch.bfloat16), "from 0 to 1, not from 1.5 to 1.5"),
        ([[1, 2], [3, 4]], "a path, a Pillow image, a numpy array or a torch tensor, not list"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(codec: Codec, image, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        hpcm_codec.encode(image, 30, codec)


def test_a_loaded_codec_encodes_and_decodes_for_both_functions(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcm_codec.api.read_models", lambda *_: pytest.fail("a model was loaded"))
    hpcm_codec.api._kept.cache_clear()
    hpcm_codec.api._kept_models.cache_clear()
    data = hpcm_codec.encode(RGB, 30, codec)
    assert np.array_equal(hpcm_codec.decode(data, codec, output="numpy"), codec.decode(data).pixels)
    assert data == codec.encode(Picture(RGB), 30)


def test_a_cut_file_is_shown_on_demand_only(codec: Codec, stream: bytes) -> None:
    cut = stream[:-20]
    with pytest.raises(CorruptStreamError, match="cut short"):
        hpcm_codec.decode(cut, codec)
    shown = hpcm_codec.decode(cut, codec, partial=True, output="numpy")
    assert np.array_equal(shown, codec.decode(cut, partial=True).pixels)


def test_arguments_that_make_no_sense_are_refused_by_name(codec: Codec, stream: bytes, photograph) -> None:
    for arguments, error, reason in (
        ({"output": "jax"}, UsageError, "there is no output 'jax'; use pil, numpy or torch"),
        ({"region": (0, 0, 0, 5)}, UsageError, "empty"),
        ({"region": (0, 0, 500, 5)}, UsageError, "not inside"),
        ({"scale": "s4"}, UsageError, "no scale 's4'"),
        ({"max_pixels": 100}, CorruptStreamError, "above the limit of 100"),
        ({"memory": 1000}, MemoryLimitError, "above the limit of 1000"),
    ):
        with pytest.raises(error, match=reason):
            hpcm_codec.decode(stream, codec, **arguments)
    with pytest.raises(UsageError, match="40×30 pixels is above the limit of 100"):
        hpcm_codec.encode(RGB, 30, codec, max_pixels=100)
    with pytest.raises(FileError, match="96×64 pixels, above the limit of 100"):
        hpcm_codec.encode(photograph, 30, codec, max_pixels=100)


def test_a_model_is_loaded_once_however_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    read: list[str] = []
    loaded: list[str] = []

    def counted_read(model: str) -> StoredCheckpoint | Family:
        read.append(model)
        return read_models(model)

    def counted_load(checkpoint: StoredCheckpoint, device: str) -> Engines:
        loaded.append(device)
        return load_engines(checkpoint, device)

    monkeypatch.setattr(hpcm_codec.api, "read_models", counted_read)
    monkeypatch.setattr("hpcm_codec.engines.models.load_engines", counted_load)
    hpcm_codec.api._kept.cache_clear()
    hpcm_codec.api._kept_models.cache_clear()
    checkpoint = shipped_checkpoints()[DEFAULT_MODEL]
    monkeypatch.chdir(checkpoint.parent)
    ways: list[dict[str, Any]] = [{}, {"device": "cpu"}, {"profile": "exact"}]
    ways += [{"model": DEFAULT_MODEL}, {"model": str(checkpoint)}]
    for arguments in ways:
        data = hpcm_codec.encode(RGB, 20, **arguments)
    hpcm_codec.encode(RGB, 20, checkpoint.name, device="cpu", profile="auto")
    hpcm_codec.encode(RGB, 20, profile="float")
    ways = [{}, {"device": "auto"}, {"model": DEFAULT_MODEL}, {"model": checkpoint.name, "device": "cpu"}]
    for arguments in ways:
        assert hpcm_codec.decode(data, **arguments).size == (40, 30)
    Image.fromarray(RGB).save(tmp_path / "a.hpcm", model=DEFAULT_MODEL)
    Image.open(tmp_path / "a.hpcm").load()
    assert len(read) == 1 and len(loaded) == (2 if torch.cuda.is_available() else 1)
    hpcm_codec.api._kept.cache_clear()
    hpcm_codec.api._kept_models.cache_clear()


def test_both_profiles_of_a_kept_model_are_what_they_are_alone(codec: Codec) -> None:
    assert hpcm_codec.encode(RGB, 20, device="cpu", profile="exact") == codec.encode(Picture(RGB), 20)
    as_float = hpcm_codec.encode(RGB, 20, device="cpu", profile="float")
    assert parse_header(as_float).float_profile and not parse_header(codec.encode(Picture(RGB), 20)).float_profile
    assert as_float == hpcm_codec.load_codec(device="cpu", profile="float").encode(Picture(RGB), 20)
    assert codec.with_profile("auto") is codec and codec.with_profile("exact") is codec


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"quality": "50"}, "quality is a number, not '50'"),
        ({"quality": None}, "quality is a number, not None"),
        ({"quality": [50, 60]}, "quality is a number"),
        ({"quality": float("nan")}, "quality nan is not between 0 and 100"),
        ({"device": "tpu"}, "a device is auto, cpu, cuda or cuda:N, not 'tpu'"),
        ({"device": None}, "a device is"),
        ({"device": "cuda:x"}, "a device is"),
        ({"profile": "x"}, "there is no profile 'x'; use one of auto, exact, float"),
        ({"model": 3}, "a model is a checkpoint's name or path, or a Codec, not int"),
        ({"max_pixels": "many"}, "max_pixels is a whole number, not 'many'"),
        ({"max_pixels": 0}, "max_pixels is at least 1, not 0"),
        ({"memory": "1GB"}, "memory is a whole number, not '1GB'"),
    ],
)
def test_arguments_of_encode_that_make_no_sense_are_refused_by_name(arguments, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        hpcm_codec.encode(RGB, **arguments)


@pytest.mark.parametrize(
    ("data", "arguments", "reason"),
    [
        ("file.hpcm", {}, r"the bytes of a \.hpcm file are wanted, not str; read the file"),
        (Path("file.hpcm"), {}, "are wanted, not PosixPath; read the file"),
        (None, {}, "are wanted, not NoneType"),
        (None, {"region": "abc"}, "are wanted"),
        (b"", {"region": (0.5, 0, 10, 10)}, r"whole pixels, not \(0.5, 0, 10, 10\)"),
        (b"", {"region": (1, 2, 3)}, "whole pixels"),
        (b"", {"region": "abcd"}, "whole pixels, not 'abcd'"),
        (b"", {"region": 5}, "whole pixels, not 5"),
        (b"", {"scale": 3}, "there is no scale 3"),
        (b"", {"device": "tpu"}, "a device is"),
        (b"", {"model": 3}, "a model is"),
    ],
)
def test_arguments_of_decode_that_make_no_sense_are_refused_by_name(
    stream: bytes, data, arguments, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        hpcm_codec.decode(data or stream if data == b"" else data, **arguments)


def test_numbers_of_other_libraries_are_numbers(codec: Codec, stream: bytes) -> None:
    region = tuple(np.array([1, 2, 30, 20]))
    assert hpcm_codec.decode(stream, codec, region=region).size == (30, 20)  # type: ignore[arg-type]
    assert hpcm_codec.encode(RGB, np.float32(20), codec) == hpcm_codec.encode(RGB, torch.tensor(20), codec)  # type: ignore[arg-type]
    assert hpcm_codec.decode(bytearray(stream), codec).size == hpcm_codec.decode(memoryview(stream), codec).size  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_the_program_changes_nothing(codec: Codec, dtype: torch.dtype) -> None:
    data = hpcm_codec.encode(RGB, 60, codec)
    pixels = hpcm_codec.decode(data, codec, output="numpy")
    as_float = codec.with_profile("float").encode(Picture(RGB), 60)
    with torch.autocast("cpu", dtype):
        assert hpcm_codec.encode(RGB, 60, codec) == data
        assert np.array_equal(hpcm_codec.decode(data, codec, output="numpy"), pixels)
        assert np.array_equal(codec.decode_region(data, (3, 4, 20, 10)).pixels, pixels[4:14, 3:23])
        assert codec.with_profile("float").encode(Picture(RGB), 60) == as_float
        assert codec.encode_with_latents(Picture(RGB), 60).data == data
        assert torch.is_autocast_enabled("cpu")


def test_every_public_name_is_there() -> None:
    for name in hpcm_codec.__all__:
        assert getattr(hpcm_codec, name) is not None
    assert issubclass(HpcmError, Exception)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hpcm_codec.nothing
