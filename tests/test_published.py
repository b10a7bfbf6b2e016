"""`hpcm checkpoints import`: published files become checkpoints, and everything else is refused by name.

That the golden outputs come out of an imported file, `test_hpcm_phase1.py` has.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from PIL import Image

import hpcm_codec
from conftest import few_extremes, small_photograph
from hpcm_codec.bitstream.container import parse_header
from hpcm_codec.cli.checkpoints import command
from hpcm_codec.errors import FileError, HpcmError, UnsupportedError
from hpcm_codec.model.config import preset
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.model.published import our_name
from hpcm_codec.weights import published
from hpcm_codec.weights.checkpoints import load_checkpoint, save_checkpoint, verify_checkpoint
from hpcm_codec.weights.families import write_family

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def names(reference: Path) -> dict[str, list[int]]:
    """The names and shapes of a published HPCM-Base."""
    found: dict[str, list[int]] = json.loads((reference / "hpcm_base_parameters.json").read_text())
    return found


@pytest.fixture
def tiny(names: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch) -> Tensors:
    """A published HPCM-Base with few channels, which are what `preset` then says."""
    presets = {
        name: dataclasses.replace(preset(name), latent_channels=16, hyper_channels=8)
        for name in ("hpcm-base", "hpcm-large")
    }
    monkeypatch.setattr(published, "preset", presets.__getitem__)
    return in_published_form(names, presets["hpcm-base"])


def in_published_form(names: Any, config: Any) -> Tensors:
    """Random weights of a configuration under published names, with the axes that published tensors have."""
    torch.manual_seed(0)
    state = HPCM(config).state_dict()
    found = {}
    for name in names:
        value = state[our_name(name)]
        if value.ndim == 2:  # gains and the distribution of hyper-latents
            value = value[:, :, None, None]
        found[name] = value + 0.01 * torch.randn_like(value)
    return found


def large_names(names: Any) -> list[str]:
    """HPCM-Large's, as its source says.

    8 blocks at 1/8 resolution instead of 4, one block more behind the gains of s1 and s2, and one more on both sides of those of s3.
    """
    state = HPCM(preset("hpcm-large"), initialise=False).state_dict().keys()
    deeper = set()
    for name in names:
        deeper.add(name)
        if match := re.fullmatch(r"(g_[as]\.branch)\.(\d+)\.(.+)", name):
            deeper |= {f"{match[1]}.{number}.{match[3]}" for number in range(16)}
        if match := re.fullmatch(r"(y_spatial_prior_\w+\.branch_[12])\.\d\.(.+)", name):
            deeper |= {f"{match[1]}.{number}.{match[2]}" for number in range(4)}

    def there(name: str) -> bool:
        ours = our_name(name)
        head = ".head." not in ours or name.endswith(
            (f"{3 if 's3' in name else 2}.weight", f"{3 if 's3' in name else 2}.bias")
        )
        return ours in state and head and not name.startswith("adaptive_params_list")

    return sorted(filter(there, deeper))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["import", *map(str, arguments)])


def test_a_published_file_becomes_a_codec_with_one_command(tiny: Tensors, tmp_path: Path) -> None:
    source, target = tmp_path / "0.013.pth.tar", tmp_path / "hpcm-base.safetensors"
    buffers = {
        "scale_table": torch.ones(60),
        "quantized_cdf_z": torch.ones(2, 3),
        "entropy_estimation.beta": torch.tensor(1.5),
    }
    torch.save({"state_dict": {f"module.{name}": value for name, value in {**tiny, **buffers}.items()}}, source)
    result = run(source, "-o", target)
    assert result.exit_code == 0, result.output
    assert "HPCM-Base" in result.output
    checkpoint = load_checkpoint(str(target))
    assert checkpoint.identity.hex() in result.output
    verify_checkpoint(checkpoint, "imported")
    assert checkpoint.training["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert checkpoint.training["imported"] == "HPCM-Base" and checkpoint.training["source"] == source.name
    assert checkpoint.config.hyper_gather == "published"
    for name, value in tiny.items():
        assert torch.equal(checkpoint.weights[our_name(name)].flatten(), value.flatten()), name
    pixels = small_photograph()
    data = hpcm_codec.encode(pixels, model=str(target))
    assert hpcm_codec.decode(data, model=str(target), output="numpy").shape == pixels.shape


def test_large_is_seen_from_its_names_and_its_gains_are_one(names: Any, tiny: Tensors, tmp_path: Path) -> None:
    config = dataclasses.replace(preset("hpcm-large"), latent_channels=16, hyper_channels=8)
    tensors = in_published_form(large_names(names), config)
    torch.save(tensors, tmp_path / "large.pth.tar")
    found = published.read_published(tmp_path / "large.pth.tar")
    assert found.record["imported"] == "HPCM-Large" and "gains" in found.record
    assert found.config == dataclasses.replace(config, hyper_gather="published")
    gains = [value for name, value in found.weights.items() if name.endswith("gain.level_values")]
    assert len(gains) == 10 and all(bool((value == 1).all()) for value in gains)
    HPCM(found.config).load_state_dict(found.weights)


def lalic(tensors: Tensors) -> Tensors:
    return {
        "g_a.1.att.omni_shift.alpha": torch.ones(4),
        "g_a.1.att.decay": torch.ones(96),
        "g_a.0.weight": torch.ones(96, 3, 5, 5),
    }


def another_rwkv(tensors: Tensors) -> Tensors:
    return {"blocks.0.mix.spatial_decay": torch.ones(8)}


def hpcm_with_rwkv(tensors: Tensors) -> Tensors:
    return {**tensors, "attn_s3.spatial_mix.omni_shift.alpha": torch.ones(4)}


def without_attention(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if not name.startswith("attn_")}


def without_a_layer(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if name != "context_net.1.bias"}


def without_a_gain(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if name != "adaptive_params_list.4"}


def with_a_layer_more(tensors: Tensors) -> Tensors:
    return {**tensors, "context_net.2.weight": torch.ones(32, 32, 1, 1)}


def with_an_unknown_name(tensors: Tensors) -> Tensors:
    return {**tensors, "discriminator.weight": torch.ones(1)}


def wider(tensors: Tensors) -> Tensors:
    return {**tensors, "context_net.1.bias": torch.ones(33)}


def in_integers(tensors: Tensors) -> Tensors:
    return {**tensors, "context_net.1.bias": torch.ones(32, dtype=torch.int32)}


def of_another_shape(tensors: Tensors) -> Tensors:
    return {**tensors, "entropy_estimation.beta": torch.tensor(2.0)}


def with_a_number(tensors: Tensors) -> dict[str, Any]:
    return {**tensors, "epoch": 7}


def of_another_codec(tensors: Tensors) -> Tensors:
    return {"entropy_bottleneck.quantiles": torch.ones(3)}


def not_finite(tensors: Tensors) -> Tensors:
    return {**tensors, "context_net.1.bias": torch.full((32,), float("nan"))}


def infinite_in_float32(tensors: Tensors) -> Tensors:
    return {**tensors, "context_net.1.bias": torch.full((32,), 1e300, dtype=torch.float64)}


def in_a_tiny_type(tensors: Tensors) -> Tensors:
    return {**tensors, "context_net.1.bias": torch.ones(32).to(torch.float8_e4m3fn)}


def without_gains(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if not name.startswith("adaptive_params_list")}


def with_a_layer_twice(tensors: Tensors) -> Tensors:
    return {**tensors, "y_spatial_prior_s3.branch_2.7.bias": torch.ones(1)}


def without_values(tensors: Tensors) -> Tensors:
    return {**tensors, "context_net.1.bias": torch.ones(32, device="meta")}


def sparse(tensors: Tensors) -> Tensors:
    return {**tensors, "context_net.1.bias": torch.ones(32).to_sparse()}


@pytest.mark.parametrize(
    ("made", "kind", "reason"),
    [
        (lalic, UnsupportedError, "a checkpoint of LALIC"),
        (another_rwkv, UnsupportedError, "another RWKV network"),
        (hpcm_with_rwkv, UnsupportedError, "RWKV blocks of another program"),
        (without_attention, UnsupportedError, "HPCM_Phi_Context"),
        (without_a_layer, UnsupportedError, "missing .by our names.: context.context_nets.1.bias"),
        (without_a_gain, UnsupportedError, "missing .by our names.: context.adaptors.2.0.gain.level_values"),
        (with_a_layer_more, UnsupportedError, "does not have: context_net.2.weight"),
        (with_an_unknown_name, UnsupportedError, "discriminator.weight"),
        (wider, UnsupportedError, "context_net.1.bias is .33"),
        (in_integers, UnsupportedError, "context_net.1.bias is of torch.int32; weights are of torch.float64, "),
        (of_another_shape, UnsupportedError, "another distribution"),
        (with_a_number, UnsupportedError, "epoch"),
        (of_another_codec, UnsupportedError, "not a checkpoint of HPCM"),
        (not_finite, FileError, "context_net.1.bias is not finite"),
        (infinite_in_float32, FileError, "context_net.1.bias is not finite in float32"),
        (in_a_tiny_type, UnsupportedError, "context_net.1.bias is of torch.float8_e4m3fn"),
        (without_gains, UnsupportedError, "almost HPCM-Base, but missing .* and 6 more"),
        (with_a_layer_twice, UnsupportedError, "does not have: y_spatial_prior_s3.branch_2.7.bias"),
        (without_values, UnsupportedError, "context_net.1.bias is of layout torch.strided, on device meta"),
        (sparse, UnsupportedError, "context_net.1.bias is of layout torch.sparse_coo, on device cpu"),
        (lambda _: [1, 2], UnsupportedError, "not a dictionary"),
        (lambda tensors: {"model": tensors}, UnsupportedError, "no tensors: model; a state dictionary is expected"),
        (lambda _: {"state_dict": None}, UnsupportedError, "no tensors: state_dict; a state dictionary is expected"),
        (lambda _: {"weights": Path("x")}, UnsupportedError, "it holds pathlib.* is not read.*state dictionary"),
        (lambda _: {"lr": np.float64(1)}, UnsupportedError, "it holds numpy.* is not read.*state dictionary"),
        (lambda _: {"a" * 100_000: torch.ones(1)}, UnsupportedError, "it has a{60}…; "),
    ],
)
def test_everything_else_is_refused_by_name(
    tiny: Tensors, tmp_path: Path, made: Any, kind: type[HpcmError], reason: str
) -> None:
    source, target = tmp_path / "file.pth.tar", tmp_path / "out.safetensors"
    torch.save(made(tiny), source)
    target.write_bytes(b"a good file")
    result = run(source, "-o", target, "-f")
    assert isinstance(result.exception, kind)
    assert re.search(reason, str(result.exception)) and str(source) in str(result.exception)
    assert result.exception.advice and len(str(result.exception)) < 1000
    assert target.read_bytes() == b"a good file" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_refused_without_a_traceback(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "file.pth.tar"
    source.write_bytes(content)
    result = run(source, "-o", tmp_path / "out.safetensors")
    assert isinstance(result.exception, FileError) and "damaged" in str(result.exception)
    assert "weights_only" not in str(result.exception)


def tar_archive() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights"), io.BytesIO())
    return made.getvalue()


def test_the_name_does_not_make_a_tar_archive_a_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "file.pth.tar"
    source.write_bytes(tar_archive())
    result = run(source, "-o", tmp_path / "out.safetensors")
    assert isinstance(result.exception, FileError) and "no file of torch.save" in str(result.exception)


@pytest.mark.parametrize("raised", [IndexError, RecursionError, OSError, AssertionError, UnicodeError, MemoryError])
def test_whatever_unpickling_raises_the_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise raised("in torch")

    source = tmp_path / "file.pth.tar"
    source.write_bytes(b"\x80\x02.")
    monkeypatch.setattr(torch, "load", load)
    result = run(source, "-o", tmp_path / "out.safetensors")
    assert isinstance(result.exception, FileError) and "damaged" in str(result.exception)


def test_a_single_bit_is_missed_in_no_place(tiny: Tensors, tmp_path: Path) -> None:
    source = tmp_path / "file.pth.tar"
    torch.save(tiny, source)
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size // 2 + 200] ^= 1
    source.write_bytes(content)
    result = run(source, "-o", tmp_path / "out.safetensors")
    assert isinstance(result.exception, FileError) and "CRC-32" in str(result.exception)
    assert "fetch it again" in str(result.exception) and not (tmp_path / "out.safetensors").exists()


def test_our_own_checkpoints_and_other_forms_are_named(tiny: Tensors, tmp_path: Path) -> None:
    ours, other, script = (tmp_path / name for name in ("ours.safetensors", "other.safetensors", "script.pt"))
    save_checkpoint(ours, preset("hpcm-base"), {"a": torch.ones(1)}, {})
    other.write_bytes(safetensors.torch.save({"a": torch.ones(1)}))
    torch.jit.save(torch.jit.script(torch.nn.Identity()), script)
    for source, reason in (
        (ours, "a checkpoint of this program already; use it as it is"),
        (other, "a safetensors file"),
        (script, "a TorchScript archive"),
    ):
        refused = run(source, "-o", tmp_path / "out.safetensors").exception
        assert isinstance(refused, UnsupportedError) and reason in str(refused)


def test_a_familys_file_is_a_checkpoint_of_ours(tmp_path: Path) -> None:
    members = []
    for number in (1, 2):
        file = tmp_path / str(number)
        file.write_bytes(b"a member's file")
        members.append((file, bytes([number] * 8), float(number)))
    write_family(tmp_path / "family.safetensors", members)
    refused = run(tmp_path / "family.safetensors", "-o", tmp_path / "out.safetensors").exception
    assert isinstance(refused, UnsupportedError) and "of this program already" in str(refused)


def test_torchs_warnings_do_not_reach_the_user(tiny: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = torch.load

    def load(*arguments: Any, **options: Any) -> Any:
        warnings.warn("please file an issue", stacklevel=1)
        return loading(*arguments, **options)

    monkeypatch.setattr(torch, "load", load)
    torch.save(tiny, tmp_path / "file.pth.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert published.read_published(tmp_path / "file.pth.tar").record["imported"] == "HPCM-Base"


def test_what_cannot_be_done_is_said_before_work_begins(tiny: Tensors, tmp_path: Path) -> None:
    source, target = tmp_path / "file.pth.tar", tmp_path / "out.safetensors"
    torch.save(tiny, source)
    twice = run(source, source, "-o", target)
    assert isinstance(twice.exception, UnsupportedError) and "the same weights" in str(twice.exception)
    assert isinstance(run(tmp_path / "nowhere", "-o", target).exception, FileError)
    exact = run(source, "-o", target, "--calibrate", tmp_path / "nowhere")
    assert isinstance(exact.exception, FileError) and "nowhere" in str(exact.exception)
    assert not target.exists()
    target.write_bytes(b"a good file")
    assert isinstance(run(source, "-o", target).exception, FileError)
    assert target.read_bytes() == b"a good file"


def test_a_published_file_gets_an_exact_profile_with_one_command(tiny: Tensors, tmp_path: Path) -> None:
    source, target, photographs = tmp_path / "0.013.pth.tar", tmp_path / "exact.safetensors", tmp_path / "photographs"
    torch.save(tiny, source)
    photographs.mkdir()
    for seed in range(2):
        Image.fromarray(small_photograph(256, 256, seed)).save(photographs / f"{seed}.png")
    with few_extremes():
        result = run(source, "-o", target, "--calibrate", photographs, "--pictures", 2)
    assert result.exit_code == 0, result.output
    checkpoint = load_checkpoint(str(target))
    verify_checkpoint(checkpoint, "imported")
    assert checkpoint.exact is not None and checkpoint.config.hyper_gather == "published"
    assert checkpoint.training["imported"] == "HPCM-Base"
    codec = hpcm_codec.load_codec(str(target), profile="exact")
    data = hpcm_codec.encode(small_photograph(), model=codec)
    assert not parse_header(data).float_profile
    assert hpcm_codec.decode(data, model=str(target), output="numpy").shape == small_photograph().shape
    floating = hpcm_codec.load_codec(str(target), profile="float")
    assert len(data) == pytest.approx(len(hpcm_codec.encode(small_photograph(), model=floating)), rel=0.02, abs=8)
