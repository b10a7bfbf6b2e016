"""Several published rates as one checkpoint: ordered, chosen by the quality, found again by the file, read one at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from conftest import small_photograph
from hpcm_codec import Codec, Picture, load_codec
from hpcm_codec.bitstream.container import parse_header
from hpcm_codec.cli.main import main
from hpcm_codec.engines import families
from hpcm_codec.errors import FileError, HpcmError, UnsupportedError, UsageError
from hpcm_codec.model.config import ModelConfig, preset
from hpcm_codec.targets import Target, TargetError, encode_to_target
from hpcm_codec.weights import published
from hpcm_codec.weights.checkpoints import load_checkpoint
from hpcm_codec.weights.families import Family, read_family
from hpcm_codec.weights.stored import read_checkpoint, read_member
from test_published import Tensors, in_published_form, large_names

GAINS = {
    "0018": 10.0,
    "0130": 40.0,
    "0483": 160.0,
}  # of the analysis' last layer: the larger the latents, the more bits


@dataclasses.dataclass(frozen=True)
class Made:
    """A folder with three published files, and the family that `hpcm checkpoints import` made of them, given in another order."""

    folder: Path
    sources: dict[str, Path]
    family: Path
    output: str


def hpcm(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def with_gain(tensors: Tensors, gain: float, layer: str = "g_a.branch.11") -> Tensors:
    return {name: value * gain if name.startswith(f"{layer}.") else value for name, value in tensors.items()}


def narrow(name: str) -> ModelConfig:
    return dataclasses.replace(preset(name), latent_channels=16, hyper_channels=8)


@pytest.fixture(scope="module")
def names(reference: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads((reference / "hpcm_base_parameters.json").read_text())
    return found


@pytest.fixture(scope="module", autouse=True)
def few_channels() -> Iterator[None]:
    """The published networks with few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "preset", narrow)
        yield


@pytest.fixture(scope="module")
def made(names: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("family")
    tensors = in_published_form(names, narrow("hpcm-base"))
    sources = {}
    for name, gain in GAINS.items():
        sources[name] = folder / f"{name}.pth.tar"
        torch.save({"state_dict": with_gain(tensors, gain)}, sources[name])
    target = folder / "hpcm-base.safetensors"
    result = hpcm("checkpoints", "import", *(sources[name] for name in ("0130", "0483", "0018")), "-o", target)
    assert result.exit_code == 0, result.output
    assert not [path for path in folder.iterdir() if path.name.startswith(".hpcm")]
    return Made(folder, sources, target, result.output)


@pytest.fixture(scope="module")
def rates(made: Made) -> Codec:
    return load_codec(str(made.family), device="cpu")


@pytest.fixture(scope="module")
def family(made: Made) -> Family:
    found = read_family(made.family)
    assert found is not None
    return found


@pytest.fixture
def picture() -> Picture:
    return Picture(small_photograph())


# ---------------------------------------------------------------------------------------------------------- importing


def test_the_order_is_that_of_the_rates_whatever_the_order_of_the_files(made: Made, family: Family) -> None:
    lines = [line.split() for line in made.output.splitlines()[1:4]]
    assert [(line[1], Path(line[-1]).name) for line in lines] == [
        ("0", "0018.pth.tar"),
        ("50", "0130.pth.tar"),
        ("100", "0483.pth.tar"),
    ]
    assert [line[4] for line in lines] == [member.identity.hex() for member in family.members]
    rates = [member.rate for member in family.members]
    assert rates == sorted(rates) and rates[0] < rates[-1] / 2
    assert "HPCM-Base, 3 rates" in made.output and family.identity.hex() in made.output


def test_a_member_is_what_the_import_of_its_file_alone_is(made: Made, family: Family, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    assert hpcm("checkpoints", "import", made.sources["0130"], "-o", alone).exit_code == 0
    member, checkpoint = read_member(family, 1), read_checkpoint(str(alone))
    assert member.identity == checkpoint.identity == family.members[1].identity
    assert member.metadata == checkpoint.metadata
    picture = Picture(small_photograph())
    data = load_codec(str(made.family), device="cpu").encode(picture, 50)
    assert np.array_equal(
        load_codec(str(alone), device="cpu").decode(data).pixels,
        load_codec(str(made.family), device="cpu").decode(data).pixels,
    )


def test_files_that_make_no_family_are_refused_by_name_and_nothing_is_written(
    made: Made, names: Any, tmp_path: Path
) -> None:
    tensors = in_published_form(names, narrow("hpcm-base"))
    large, copied, near, broken = (tmp_path / name for name in ("large.pth", "copied.pth", "near.pth", "broken.pth"))
    torch.save(in_published_form(large_names(names), narrow("hpcm-large")), large)
    torch.save({f"module.{name}": value for name, value in with_gain(tensors, 10.0).items()}, copied)
    torch.save(with_gain(tensors, 10.001), near)
    broken.write_bytes(b"not a checkpoint")
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"a good file")
    first = made.sources["0018"]
    for other, kind, reason in (
        (large, UnsupportedError, "HPCM-Large, while .*0018.pth.tar is HPCM-Base"),
        (copied, UnsupportedError, "the same weights as .*0018.pth.tar"),
        (first, UnsupportedError, "the same weights as .*0018.pth.tar"),
        (near, UnsupportedError, "neither is the higher one"),
        (broken, FileError, "damaged"),
        (tmp_path / "nowhere", FileError, "no such file"),
    ):
        result = hpcm("checkpoints", "import", first, other, "-o", target, "-f")
        assert result.exit_code == kind.exit_status, result.output
        assert re.search(f"^hpcm: .*{reason}", result.stderr), result.stderr
        assert str(other) in result.stderr or str(first) in result.stderr
    assert target.read_bytes() == b"a good file"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".hpcm")]


def test_the_built_in_picture_tells_the_rates_of_a_trained_model_apart() -> None:
    model = load_checkpoint().build_model()
    found = [families.measured(model, position) for position in range(8)]
    assert all(higher[0] > 1.1 * lower[0] for lower, higher in pairwise(found)), found
    assert all(higher[1] > lower[1] for lower, higher in pairwise(found)), found
    assert families.built_in_picture().std() > 0.1


def test_a_second_curve_among_the_files_is_reported(made: Made) -> None:
    low = families.Examined(Path("low"), "HPCM-Base", b"", 0.1, 30.0)
    better, worse = (dataclasses.replace(low, source=Path("high"), rate=0.2, fidelity=f) for f in (31.0, 28.5))
    assert families.out_of_order([low, better]) == []
    (line,) = families.out_of_order([low, worse])
    assert line.startswith("high takes more bits than low and is 1.50 dB worse")


def test_a_family_has_two_members_at_least(tmp_path: Path) -> None:
    with pytest.raises(HpcmError, match="2 to 201 rates, not 1"):
        families.import_family([Path("one")], tmp_path / "f.safetensors")


# ------------------------------------------------------------------------------------------------------------- coding


def test_the_quality_chooses_the_nearest_member_and_the_file_names_it(
    rates: Codec, family: Family, picture: Picture
) -> None:
    assert rates.qualities == (0, 50, 100)
    for quality, stored, number in ((0, 0, 0), (24.5, 0, 0), (25, 50, 1), (74.5, 50, 1), (75, 100, 2), (100, 100, 2)):
        data = rates.encode(picture, quality)
        header = parse_header(data)
        assert (header.quality, header.checkpoint_id) == (stored, family.members[number].identity)
        assert rates.identity_at(quality) == header.checkpoint_id
        assert rates.nearest_quality(quality) == stored
        member = rates.at(quality)
        assert member.encode(picture, quality) == data == rates.encode_with_latents(picture, quality).data
        assert np.array_equal(rates.decode(data).pixels, member.decode(data).pixels)
        assert rates.symbol_digest(data) == member.symbol_digest(data)
    sizes = [len(rates.encode(picture, quality)) for quality in rates.qualities]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]
    with pytest.raises(UsageError, match="not between"):
        rates.encode(picture, 101)


def test_qualities_are_spread_evenly_in_half_steps() -> None:
    def of(count: int) -> Family:
        return Family(Path("x"), tuple(families_member(number) for number in range(count)))

    assert of(2).codes == (0, 200)
    assert of(4).codes == (0, 67, 133, 200)
    assert of(6).codes == (0, 40, 80, 120, 160, 200)
    assert of(6).number_at(100) == 3  # of two that are equally near, the better picture
    assert [of(2).number_at(code) for code in (0, 99, 100, 200)] == [0, 0, 1, 1]
    for count in range(2, 202):
        found = of(count)
        assert len(set(found.codes)) == count
        chosen = [found.number_at(code) for code in range(201)]
        assert chosen == sorted(chosen) and set(chosen) == set(range(count))


def families_member(number: int) -> Any:
    from hpcm_codec.weights.families import Member

    return Member(number.to_bytes(8, "little"), float(number), 8, 8)


def test_what_is_of_one_model_is_asked_of_a_member(made: Made, rates: Codec, picture: Picture) -> None:
    for ask in (lambda: rates.analyse(picture), lambda: rates.engine, lambda: rates.config):
        with pytest.raises(UsageError, match=r"codec\.at\(quality\)"):
            ask()
    analysed = rates.at(100).analyse(picture)
    assert rates.at(100).bytes_of_analysed(picture, analysed, 100) == rates.encode(picture, 100)
    assert rates.device == "cpu" and not rates.exact_pixels and rates.profile == "float"
    with pytest.raises(UnsupportedError, match="no exact profile"):
        load_codec(str(made.family), profile="exact")


def test_a_file_of_another_model_is_refused(rates: Codec, stream: bytes) -> None:
    with pytest.raises(UnsupportedError, match=f"which the family {rates.identity.hex()} does not have"):
        rates.decode(stream)


def test_only_the_member_in_use_is_read(
    made: Made, family: Family, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def noting(which: Family, number: int) -> Any:
        read.append(number)
        return read_member(which, number)

    monkeypatch.setattr("hpcm_codec.engines.models.read_member", noting)
    codec = load_codec(str(made.family), device="cpu")
    assert read == [] and codec.identity == family.identity
    data = codec.encode(picture, 10)
    codec.decode(data)
    assert read == [0]
    codec.encode(picture, 100)
    codec.decode(data)
    assert read == [0, 2, 0]


def test_a_model_is_let_go_when_another_is_used(made: Made) -> None:
    code = (
        "import sys, weakref, numpy as np; from hpcm_codec import Picture, load_codec;"
        "codec, picture = load_codec(sys.argv[1], 'cpu'), Picture(np.zeros((64, 64, 3), np.uint8));"
        "codec.encode(picture, 0); first = weakref.ref(codec.at(0).engine.model); print(first() is None);"
        "codec.encode(picture, 100); print(first() is None)"
    )
    done = subprocess.run([sys.executable, "-c", code, made.family], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_threads_that_use_different_members_do_not_mix_them(rates: Codec, picture: Picture) -> None:
    qualities = [0, 100, 50, 0, 100, 50]
    expected = {quality: rates.encode(picture, quality) for quality in set(qualities)}
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda quality: rates.encode(picture, quality), qualities)) == [
            expected[quality] for quality in qualities
        ]


def test_targets_are_met_by_a_member(rates: Codec, picture: Picture) -> None:
    files = [rates.encode(picture, quality) for quality in rates.qualities]
    reached = encode_to_target(rates, picture, Target("bytes", len(files[1])))
    assert (reached.quality, reached.data) == (50, files[1])
    assert encode_to_target(rates, picture, Target("bytes", len(files[1]) - 1)).data == files[0]
    assert encode_to_target(rates, picture, Target("bytes", 10**9)).data == files[2]
    with pytest.raises(TargetError, match=f"at quality 0 it takes {len(files[0])}"):
        encode_to_target(rates, picture, Target("bytes", 20))
    lowest = encode_to_target(rates, picture, Target("psnr", 1))
    assert (lowest.quality, lowest.data) == (0, files[0])
    with pytest.raises(TargetError, match="quality 100 gives"):
        encode_to_target(rates, picture, Target("psnr", 90))


def test_a_model_of_one_rate_has_one_quality(made: Made, family: Family, tmp_path: Path, picture: Picture) -> None:
    one = tmp_path / "one.safetensors"
    one.write_bytes(family.content(2))
    codec = load_codec(str(one), device="cpu")
    assert codec.qualities == (50,)
    assert codec.encode(picture, 0) == codec.encode(picture, 100)
    assert encode_to_target(codec, picture, Target("bytes", 10**6)).quality == 50
    assert load_codec(device="cpu").qualities == tuple(code / 2 for code in range(201))


# ---------------------------------------------------------------------------------------------- from the shell


def test_from_the_shell_as_a_user_would(made: Made, family: Family, tmp_path: Path) -> None:
    models, pictures = tmp_path / "models", tmp_path / "pictures"
    models.mkdir()
    pictures.mkdir()
    os.link(made.family, models / "hpcm-base.safetensors")
    for seed in range(2):
        Image.fromarray(small_photograph(seed=seed)).save(pictures / f"p{seed}.png")
    environment = {**os.environ, "HPCM_MODELS": str(models)}

    def shell(*arguments: object) -> str:
        command = [sys.executable, "-m", "hpcm_codec", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert f"hpcm-base  {family.identity.hex()}" in shell("checkpoints", "list")
    for quality, number in ((0, 1), (50, 2), (100, 3)):
        shell("encode", "pictures/p0.png", "-o", f"{quality}.hpcm", "-q", quality, "--model", "hpcm-base")
        shell("decode", f"{quality}.hpcm", "-o", f"{quality}.png")  # found by the identity
        with Image.open(tmp_path / f"{quality}.png") as decoded:
            assert decoded.size == (96, 64)
        said = shell("info", f"{quality}.hpcm")
        assert f"known here as hpcm-base, model {number} of 3" in said and f"quality     {quality}" in said
    sizes = [(tmp_path / f"{quality}.hpcm").stat().st_size for quality in (0, 50, 100)]
    assert sizes == sorted(set(sizes))

    said = shell("info", "--model", "hpcm-base")
    assert all(f"quality {quality}: model" in said for quality in (0, 50, 100)) and "0130.pth.tar" in said
    said = shell("eval", "--dataset", "pictures", "--model", "hpcm-base", "-q", "0,10,40,50,100", "--json", "out.json")
    assert "is measured at the qualities that it has: 0, 50, 100" in said
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["qualities"] == [0, 50, 100]
    assert [(row["image"], row["quality"]) for row in results["per_image"]] == [
        (f"p{seed}.png", quality) for seed in range(2) for quality in (0, 50, 100)
    ]
    assert results["checkpoint"]["identity"] == family.identity.hex()
    assert [row["bytes"] for row in results["per_image"][:3]] == sizes


def test_batches_report_the_member_and_resume(made: Made, family: Family, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(2):
        Image.fromarray(small_photograph(seed=seed)).save(pictures / f"p{seed}.png")
    arguments = ("encode", pictures, "-o", tmp_path / "small", "--model", made.family, "-q", 60, "--json")
    manifest = ("--manifest", tmp_path / "m.jsonl")
    first = hpcm(*arguments, *manifest)
    assert first.exit_code == 0, first.output
    told = [json.loads(line) for line in first.stdout.splitlines()]
    assert {(entry["quality"], entry["model"]) for entry in told} == {(50, family.members[1].identity.hex())}
    assert "2 of 2 were finished before" in hpcm(*arguments[:-1], *manifest, "--resume").stderr
    hpcm(*arguments[:-1], "--manifest", tmp_path / "later.jsonl", "--resume")  # looks into the files
    rows = [json.loads(line) for line in (tmp_path / "later.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows if "status" in row] == ["kept", "kept"]
    by_size = hpcm("encode", pictures / "p0.png", "-o", tmp_path / "s.hpcm", "--size", "1MB", "--model", made.family)
    assert "quality 100" in by_size.stderr
    nearest = hpcm("encode", pictures / "p0.png", "-o", tmp_path / "n.hpcm", "-q", 10, "--model", made.family)
    assert "quality 0" in nearest.stderr


def test_eval_takes_every_member_by_default_and_says_when_they_are_too_few(made: Made, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(small_photograph()).save(pictures / "p.png")
    output = tmp_path / "out.json"
    arguments = ("eval", "--dataset", pictures, "--model", made.family, "--json", output)
    assert hpcm(*arguments, "--verify").exit_code == 0
    assert json.loads(output.read_text())["qualities"] == [0, 50, 100]
    few = hpcm(*arguments, "-f", "-q", "0,5,10,15,20", "--anchor", "vtm91-lalic")
    assert few.exit_code == 2 and "qualities or more, not 1" in few.stderr
    matched = hpcm(*arguments[:3], "--model", made.family, "--codec", "jpeg,hpcm", "-q", 20, "--json", output, "-f")
    assert matched.exit_code == 0, matched.output
    (ours,) = json.loads(output.read_text())["other_codecs"]
    assert ours["per_image"][0]["setting"] in (0, 50, 100)


def test_compare_and_pillow_take_a_family(made: Made, photograph: Path, tmp_path: Path) -> None:
    import hpcm_codec.pillow

    compared = hpcm(
        "compare", photograph, "--model", made.family, "-q", 30, "--codec", "hpcm", "-o", tmp_path / "c.html"
    )
    assert compared.exit_code == 0 and "quality 50" in compared.output, compared.output
    with Image.open(photograph) as image:
        image.save(tmp_path / "p.hpcm", quality=90, model=str(made.family))
    with Image.open(tmp_path / "p.hpcm") as image:
        assert image.info["quality"] == 100
    data = (tmp_path / "p.hpcm").read_bytes()
    assert data == hpcm_codec.encode(photograph, 90, model=str(made.family))
    assert hpcm_codec.decode(data, model=str(made.family)).size == (96, 64)


def test_show_list_verify_and_info_have_every_member(
    made: Made, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCM_MODELS", str(made.folder))
    identities = [member.identity.hex() for member in family.members]
    (listed,) = [
        e
        for e in json.loads(hpcm("checkpoints", "list", "--json").stdout)
        if e["path"].endswith("hpcm-base.safetensors")
    ]
    assert listed["identity"] == family.identity.hex()
    assert [member["identity"] for member in listed["members"]] == identities
    shown = json.loads(hpcm("checkpoints", "show", made.family).stdout)
    assert [member["training"]["source"] for member in shown["members"]] == [f"{name}.pth.tar" for name in GAINS]
    assert all(re.fullmatch("[0-9a-f]{64}", member["training"]["source_sha256"]) for member in shown["members"])
    verified = hpcm("checkpoints", "verify", made.family)
    assert verified.exit_code == 0 and all(identity in verified.stdout for identity in identities)
    described = json.loads(hpcm("info", "--model", "hpcm-base", "--json").stdout)
    assert described["checkpoint"]["known_as"] == "hpcm-base"
    assert [member["identity"] for member in described["checkpoint"]["members"]] == identities


def test_a_family_is_exported_whole_or_one_member_of_it(made: Made, family: Family, tmp_path: Path) -> None:
    half, one = tmp_path / "half.safetensors", tmp_path / "one.safetensors"
    assert hpcm("checkpoints", "export", made.family, "-o", half).exit_code == 0
    exported = read_family(half)
    assert exported is not None and exported.codes == family.codes and exported.identity != family.identity
    assert half.stat().st_size < 0.6 * made.family.stat().st_size
    assert all(value.dtype == np.float16 for value in read_member(exported, 1).weights.values())
    assert [member.rate for member in exported.members] == [member.rate for member in family.members]
    assert hpcm("checkpoints", "export", made.family, "-q", 70, "--dtype", "float32", "-o", one).exit_code == 0
    assert read_checkpoint(str(one)).identity == family.members[1].identity
    refused = hpcm("checkpoints", "export", one, "-q", 70, "-o", half, "-f")
    assert refused.exit_code == 2 and "for families" in refused.stderr
    for wanting_one in (load_checkpoint, read_checkpoint):
        with pytest.raises(UnsupportedError, match="a family of 3 models, where one is wanted"):
            wanting_one(str(made.family))
