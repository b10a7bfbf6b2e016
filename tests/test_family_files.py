"""Families' files: damaged, forged and replaced ones are refused; members with the exact profile."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import deserialize

import hpcm_codec
from conftest import small_photograph
from hpcm_codec import Picture, load_codec
from hpcm_codec.bitstream.container import parse_header
from hpcm_codec.engines import exporting, families
from hpcm_codec.errors import FileError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.weights import published
from hpcm_codec.weights.checkpoints import save_checkpoint
from hpcm_codec.weights.families import read_family, write_family
from hpcm_codec.weights.registry import has_integer_transforms
from hpcm_codec.weights.stored import read_member, read_models
from test_families import hpcm
from test_hpcm_phase1 import SMALL


@pytest.fixture(scope="module")
def exact_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small models of the variable rate's network, with the exact profile and transforms in integers."""
    folder = tmp_path_factory.mktemp("exact")
    pixels = torch.from_numpy(small_photograph(128, 128)).permute(2, 0, 1)[None] / 255
    members = []
    for number, seed in enumerate((0, 1)):
        torch.manual_seed(seed)
        save_checkpoint(folder / "plain.safetensors", SMALL, HPCM(SMALL).state_dict(), {})
        file = folder / f"{number}.safetensors"
        identity = exporting.export_checkpoint(str(folder / "plain.safetensors"), file, calibration=[pixels])
        members.append((file, identity, 1.0 + number))
    write_family(folder / "exact.safetensors", members)
    return folder / "exact.safetensors"


@pytest.fixture
def picture() -> Picture:
    return Picture(small_photograph())


def damaged_families(content: bytes) -> dict[str, bytes]:
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]

    def with_header(old: bytes, new: bytes) -> bytes:
        changed = header.replace(old, new, 1 if old == b"{" else -1)
        assert changed != header
        return len(changed).to_bytes(8, "little") + changed + rest

    identities = re.findall(rb'identity\\": \\"([0-9a-f]{16})', header)
    rates = re.findall(rb'bpp\\": ([0-9.]+)', header)
    return {
        "cut short": content[:-100],
        "with more at its end": content + b"x",
        "of a header alone": content[: 8 + length],
        "in another order": with_header(rates[0], b"99.0"),
        "with a model twice": with_header(identities[0], identities[1]),
        "with half an identity": with_header(identities[0], identities[0][:8]),
        "without a member": with_header(b'"members.1"', b'"members.9"'),
        "of other types": with_header(b'"U8"', b'"I8"'),
        "with no number": with_header(rates[0], b"NaN"),
        "with fractions of bytes": with_header(b'"data_offsets": [0, ', b'"data_offsets": [0.0, '),
        "of brackets": with_header(b"{", b"[" * 20000 + b"{"),
        "without members": with_header(b'"members":', b'"nothing":'),
    }


def test_a_damaged_family_is_refused_by_name_before_a_member_is_read(exact_family: Path, tmp_path: Path) -> None:
    for name, content in damaged_families(exact_family.read_bytes()).items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(FileError, match=f"{name}.safetensors: damaged"):
            read_models(str(path))


def test_a_member_that_is_not_the_one_named_is_refused_when_it_is_read(
    exact_family: Path, tmp_path: Path, picture: Picture
) -> None:
    content = bytearray(exact_family.read_bytes())
    content[-5] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    codec = load_codec(str(path), device="cpu")
    assert codec.encode(picture, 0)
    with pytest.raises(FileError, match=r"flipped\.safetensors: damaged"):
        codec.encode(picture, 100)
    assert codec.encode(picture, 0)  # the other is as it was
    assert hpcm("checkpoints", "verify", path).exit_code == FileError.exit_status
    assert hpcm("info", "--model", path).exit_code == 0  # reads headers alone
    assert hpcm("info", "--model", path).exit_code == 0  # of the headers alone


def test_a_family_whose_file_is_gone_or_replaced_is_refused(
    exact_family: Path, tmp_path: Path, picture: Picture
) -> None:
    path = tmp_path / "moved.safetensors"
    path.write_bytes(exact_family.read_bytes())
    codec = load_codec(str(path), device="cpu")
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(FileError, match="damaged"):
        codec.encode(picture, 0)
    path.unlink()
    with pytest.raises(FileError, match="no such file"):
        codec.encode(picture, 0)


def test_programs_that_know_no_families_read_the_format_that_they_refuse(exact_family: Path) -> None:
    """What `read_checkpoint` of earlier versions did: all tensors, then the format's name."""
    content = exact_family.read_bytes()
    assert sorted(name for name, _ in deserialize(content)) == ["members.0", "members.1"]
    length = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + length])["__metadata__"]["format"] == "hpcm-family-1"


# --------------------------------------------------------------------------------------------------- the exact profile


def test_members_with_the_exact_profile_code_in_integers(exact_family: Path, picture: Picture) -> None:
    codec = load_codec(str(exact_family), device="cpu")
    assert codec.profile == "exact" and codec.exact_pixels
    first, second = (codec.encode(picture, quality) for quality in (0, 100))
    assert parse_header(first).profile == "exact" and first != second
    found = [codec.decode(data).pixels for data in (first, second)]
    assert all(pixels.shape == picture.pixels.shape for pixels in found)
    assert all(has_integer_transforms(exact_family, identity) for identity in map(codec.identity_at, (0, 100)))
    assert codec.with_profile("float").encode(picture, 0)[3] & 0x40
    assert hpcm_codec.decode(first, model=codec, output="numpy").shape == picture.pixels.shape


def test_every_member_is_calibrated_on_the_same_pictures(
    exact_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of several rates stand for published ones that have an exact profile; the units of the same weights are known."""
    known = read_family(exact_family)
    assert known is not None
    units = iter([read_member(known, number).fractions for number in range(2)])

    def found(path: Path) -> published.Published:
        torch.manual_seed(int(path.name))
        return published.Published(SMALL, HPCM(SMALL).state_dict(), {"imported": "HPCM-Small", "source": path.name})

    for module in (families, exporting):
        monkeypatch.setattr(module, "read_published", found)
    rates = iter((0.9, 0.3))
    monkeypatch.setattr(families, "measured", lambda _: (next(rates), 30.0))
    pictures = [torch.from_numpy(small_photograph(64, 64)).permute(2, 0, 1)[None] / 255]

    def calibrated(model: HPCM, given: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        assert given is pictures
        return {name: torch.from_numpy(value) for name, value in next(units).items()}

    monkeypatch.setattr(exporting, "calibrate", calibrated)
    family, sources = families.import_family([Path("1"), Path("0")], tmp_path / "f.safetensors", pictures)
    assert [one.source.name for one in sources] == ["0", "1"]
    assert next(units, None) is None
    assert [member.identity for member in family.members] == [member.identity for member in known.members]
    assert load_codec(str(family.path), device="cpu").profile == "exact"
