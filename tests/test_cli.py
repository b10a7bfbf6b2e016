"""The command line on good input: what goes where, what is said, and how quickly it answers."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import hpcm_codec
from conftest import small_photograph
from hpcm_codec.batch.jobs import plan
from hpcm_codec.cli.main import COMMANDS, main
from hpcm_codec.codec import Codec
from hpcm_codec.errors import FileError, UsageError
from hpcm_codec.weights import registry

# The program, saying at its very end which of these modules it has imported, how many full garbage collections it has made, and
# whether it has kept them away from torch's objects.
HPCM_WATCHED = """
import atexit, gc, json, sys
unwanted = {
    *("torch", "sympy", "torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.tensor", "torch.utils.cpp_extension"),
    *("PIL.AvifImagePlugin", "rich", "compressai", "matplotlib", "hpcm_codec.training.loop", "hpcm_codec.evaluation.runner"),
}

def tell():
    facts = sorted(unwanted & set(sys.modules)), gc.get_stats()[2]["collections"]
    print(json.dumps(facts), file=sys.stderr)

atexit.register(tell)
from hpcm_codec.cli.main import main
main()
"""

# A command and its arguments, saying at its end which of the slow imports it has made.
HPCM_TELLING_IMPORTS = """
import sys
from hpcm_codec.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(sorted({'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules)), file=sys.stderr)
"""


def hpcm(*arguments: object, stdin: bytes | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def same_pixels(first: Path, second: Path) -> bool:
    return np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))


# ------------------------------------------------------------------------------------------------------ quick answers


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_take_less_than_a_third_of_a_second(option: str) -> None:
    telling = [sys.executable, "-c", HPCM_TELLING_IMPORTS, option]
    seconds = []
    for _ in range(5):
        started = processor_seconds_of_children()  # a wall clock would measure what else the machine does
        done = subprocess.run(telling, capture_output=True, text=True, check=True)
        seconds.append(processor_seconds_of_children() - started)
        assert done.stderr == "[]\n", "an import that only commands need"
    assert min(seconds) < 0.3


def processor_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_info_shows_a_file_without_waiting_for_torch(compressed: Path) -> None:
    telling = [sys.executable, "-c", HPCM_TELLING_IMPORTS, "info", str(compressed)]
    done = subprocess.run(telling, capture_output=True, text=True, check=True)
    assert "known here as phase1-lite" in done.stdout and done.stderr == "['rich']\n"


def test_errors_of_a_file_are_reported_without_importing_torch(
    compressed: Path, photograph: Path, tmp_path: Path
) -> None:
    damaged, no_picture = tmp_path / "damaged.hpcm", tmp_path / "damaged.png"
    damaged.write_bytes(compressed.read_bytes()[:-9])
    no_picture.write_bytes(photograph.read_bytes()[:50])
    for status, reason, arguments in (
        (3, "cut short", ("decode", damaged, "-o", tmp_path / "out.png")),
        (5, "exists already", ("decode", compressed, "-o", photograph)),
        (5, "damaged.png", ("encode", no_picture, "-o", tmp_path / "out.hpcm")),
        (5, "exists already", ("encode", photograph, "-o", compressed)),
    ):
        done = subprocess.run([sys.executable, "-c", HPCM_TELLING_IMPORTS, *arguments], capture_output=True, text=True)
        assert done.returncode == status and reason in done.stderr
        assert "torch" not in done.stderr.splitlines()[-1]


def test_every_command_has_its_help() -> None:
    text = hpcm("--help").stdout
    for name, short_help in COMMANDS.items():
        assert f"  {name}" in text and short_help in " ".join(text.split())
        answer = hpcm(name, "--help")
        assert answer.exit_code == 0 and f" {name} [OPTIONS]" in answer.stdout


def test_the_exit_statuses_are_in_the_help() -> None:
    text = hpcm("--help").stdout
    assert all(f"\n    {status}  " in text for status in range(6))


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, hpcm_codec; print(sorted({'torch', 'numpy', 'PIL', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# -------------------------------------------------------------------------------------------------------- round trips


def test_encode_and_decode_beside_the_input(photograph: Path, codec: Codec) -> None:
    done = hpcm("encode", photograph)
    assert done.exit_code == 0, done.output
    assert "photo.hpcm: 96×64, " in done.stderr and " bpp, " in done.stderr and "% of the input" in done.stderr
    assert done.stdout == ""
    copy = photograph.with_name("copy.png")
    assert hpcm("decode", photograph.with_suffix(".hpcm"), "-o", copy).exit_code == 0
    expected = codec.decode(photograph.with_suffix(".hpcm").read_bytes()).pixels
    assert np.array_equal(np.asarray(Image.open(copy)), expected)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff", "ppm", "bmp"])
def test_the_output_format_is_that_of_the_extension(compressed: Path, extension: str) -> None:
    target = compressed.with_name(f"copy.{extension}")
    assert hpcm("decode", compressed, "-o", target).exit_code == 0
    with Image.open(target) as image:
        known = {"jpg": "JPEG", "tiff": "TIFF"}.get(extension, extension.upper())
        assert image.format == known and image.size == (96, 64)


def test_partial_shows_what_there_is_of_a_cut_file(tmp_path: Path, stream: bytes) -> None:
    cut, shown = tmp_path / "cut.hpcm", tmp_path / "cut.png"
    cut.write_bytes(stream[:-40])
    refused = hpcm("decode", cut)
    assert refused.exit_code == 3 and "--partial" in refused.stderr and not shown.exists()
    accepted = hpcm("decode", cut, "--partial")
    assert accepted.exit_code == 0 and "shown in part: cut short: 40 bytes missing" in accepted.stderr
    with Image.open(shown) as image:
        assert image.size == (96, 64)


def test_the_input_format_is_found_by_content(photograph: Path) -> None:
    wrongly_named = photograph.with_name("photo.txt")
    photograph.rename(wrongly_named)
    assert hpcm("encode", wrongly_named).exit_code == 0
    assert wrongly_named.with_suffix(".hpcm").exists()


def test_quality_moves_the_size(photograph: Path) -> None:
    sizes = []
    for quality in (0, 50, 100):
        answer = hpcm("encode", photograph, "-q", quality, "-f", "--json", "-o", photograph.with_name("a.hpcm"))
        sizes.append(json.loads(answer.stdout)["bytes"])
    assert sizes == sorted(set(sizes))


def test_stdin_to_stdout_in_processes_of_their_own_that_import_only_what_they_need(
    photograph: Path, tmp_path: Path
) -> None:
    watched = [sys.executable, "-c", HPCM_WATCHED]
    encoded = subprocess.run([*watched, "encode", "-"], input=photograph.read_bytes(), capture_output=True, check=True)
    assert encoded.stdout.startswith(b"HPC") and b"stdin" in encoded.stderr
    to_ppm = ["decode", "-", "-o", "-", "--format", "ppm"]
    decoded = subprocess.run([*watched, *to_ppm], input=encoded.stdout, capture_output=True, check=True)
    for done in (encoded, decoded):
        imported, collections = json.loads(done.stderr.splitlines()[-1])
        assert imported == []
        assert collections <= 2  # importing torch alone made 3, 0.14 s
    assert decoded.stdout.startswith(b"P6\n96 64\n255\n") and len(decoded.stdout) == 13 + 96 * 64 * 3
    (tmp_path / "file.hpcm").write_bytes(encoded.stdout)
    assert hpcm("decode", tmp_path / "file.hpcm", "-o", tmp_path / "file.ppm").exit_code == 0
    assert (tmp_path / "file.ppm").read_bytes() == decoded.stdout


def test_strip_leaves_out_exif_and_keeps_the_profile(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[271] = "a camera"
    Image.fromarray(small_photograph()).save(tmp_path / "a.png", exif=exif, icc_profile=b"a profile")
    assert hpcm("encode", tmp_path / "a.png", "-o", tmp_path / "full.hpcm").exit_code == 0
    assert hpcm("encode", tmp_path / "a.png", "-o", tmp_path / "bare.hpcm", "--strip").exit_code == 0
    chunks = {
        name: [c["name"] for c in json.loads(hpcm("info", tmp_path / name, "--json").stdout)["chunks"]]
        for name in ("full.hpcm", "bare.hpcm")
    }
    assert "EXIF" in chunks["full.hpcm"] and "ICC profile" in chunks["full.hpcm"]
    assert "EXIF" not in chunks["bare.hpcm"] and "ICC profile" in chunks["bare.hpcm"]


def test_json_lines_have_the_figures_of_the_files(photograph: Path) -> None:
    target = photograph.with_name("a.hpcm")
    answer = json.loads(hpcm("encode", photograph, "-o", target, "--json").stdout)
    assert answer["bytes"] == target.stat().st_size and answer["input_bytes"] == photograph.stat().st_size
    assert answer["bpp"] == pytest.approx(8 * answer["bytes"] / (96 * 64), abs=1e-5)
    assert (answer["width"], answer["height"], answer["quality"]) == (96, 64, 50)


def test_quiet_prints_nothing(photograph: Path) -> None:
    done = hpcm("encode", photograph, "--quiet")
    assert (done.exit_code, done.output) == (0, "")


# -------------------------------------------------------------------------------------------------------- several files


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three pictures in two folders, a hidden one and a note."""
    for number, name in enumerate(["a.png", "sub/b.png", "sub/deep/c.jpg", ".hidden.png"]):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small_photograph(40 + number, 33, seed=number)).save(path)
    (tmp_path / "album" / "note.txt").write_text("not a picture")
    return tmp_path / "album"


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_directory_keeps_its_tree(album: Path, tmp_path: Path) -> None:
    assert hpcm("encode", album, "-o", tmp_path / "small/").exit_code == 0
    assert tree(tmp_path / "small") == ["a.hpcm", "sub/b.hpcm", "sub/deep/c.hpcm"]
    assert hpcm("decode", tmp_path / "small", "-o", tmp_path / "copies", "--format", "webp").exit_code == 0
    assert tree(tmp_path / "copies") == ["a.webp", "sub/b.webp", "sub/deep/c.webp"]


def test_several_inputs_go_into_one_directory(album: Path, tmp_path: Path) -> None:
    inputs = (album / "a.png", album / "sub" / "b.png")
    assert hpcm("encode", *inputs, "-o", tmp_path / "small", "--quiet").exit_code == 0
    assert tree(tmp_path / "small") == ["a.hpcm", "b.hpcm"]


def test_one_bad_input_does_not_stop_the_others(album: Path, tmp_path: Path) -> None:
    (album / "sub" / "aaa.png").write_bytes(b"no picture at all")
    (album / "sub" / "zzz.png").write_bytes(b"")
    done = hpcm("encode", album, "-o", tmp_path / "small", "--json")
    assert done.exit_code == 5
    assert tree(tmp_path / "small") == ["a.hpcm", "sub/b.hpcm", "sub/deep/c.hpcm"]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("status") for line in lines] == [None, 5, None, 5, None]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hpcm: 2 of 5 failed: ") and "aaa.png" in last and "zzz.png" in last


def test_the_status_is_that_of_the_first_failure(tmp_path: Path, stream: bytes) -> None:
    (tmp_path / "a.hpcm").write_bytes(stream[:-20])
    (tmp_path / "b.hpcm").write_bytes(b"HPC\x02" + stream[4:])
    done = hpcm("decode", tmp_path / "a.hpcm", tmp_path / "b.hpcm", "-o", tmp_path / "out/")
    assert done.exit_code == 3
    done = hpcm("decode", tmp_path / "b.hpcm", tmp_path / "a.hpcm", "-o", tmp_path / "out/")
    assert done.exit_code == 4


def test_plan_finds_every_contradiction_before_anything_is_done(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg", "y.png"):
        (tmp_path / name).write_bytes(b"")
    x, y, other = (str(tmp_path / name) for name in ("x.png", "y.png", "x.jpg"))

    def planned(inputs: list[str], output: str | None) -> list[tuple[str, str]]:
        jobs = plan(inputs, output, ".hpcm", lambda name: name.endswith((".png", ".jpg")), "pictures")
        return [(job.source, job.target) for job in jobs]

    assert planned([x], None) == [(x, str(tmp_path / "x.hpcm"))]
    assert planned([x], "here.hpcm") == [(x, "here.hpcm")]
    assert planned([x], f"{tmp_path}/") == [(x, str(tmp_path / "x.hpcm"))]
    assert planned(["-"], None) == [("-", "-")]
    assert planned([x, y], "new")[1] == (y, os.path.join("new", "y.hpcm"))
    # what differs in its extension only keeps it, wherever it comes from
    assert planned([x, other], None) == [(x, f"{x}.hpcm"), (other, f"{other}.hpcm")]
    found = planned([str(tmp_path)], "new/")
    assert [target for _, target in found] == [os.path.join("new", n) for n in ("x.jpg.hpcm", "x.png.hpcm", "y.hpcm")]
    for inputs, output, reason in (
        ([x, x], "new/", "would both become"),
        ([x], x, "would be overwritten"),
        ([x, y], "-", "to stdout"),
        ([x, "-"], None, "stdin"),
        (["-"], f"{tmp_path}/", "no name of its own"),
        ([x, y], other, "cannot all become"),
    ):
        with pytest.raises(UsageError, match=reason):
            planned(inputs, output)


# --------------------------------------------------------------------------------------------------------------- info


def test_info_lists_the_parts_of_a_file(compressed: Path, codec: Codec) -> None:
    reported = json.loads(hpcm("info", compressed, "--json").stdout)
    assert (reported["width"], reported["height"], reported["quality"], reported["sound"]) == (96, 64, 40, True)
    assert sum(chunk["size"] for chunk in reported["chunks"]) == reported["bytes"] == compressed.stat().st_size
    assert reported["checkpoint"] == {"identity": codec.identity.hex(), "known_as": "phase1-lite"}
    assert reported["tiles"] == {"count": 1, "rows": 1, "columns": 1}
    assert reported["exact_pixels"] is True
    words = hpcm("info", compressed).stdout
    assert "known here as phase1-lite" in words and "s3 of tile 0" in words
    assert "pixels      the same on every processor" in words


def test_info_says_what_decoded_pixels_depend_on(compressed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "has_integer_transforms", lambda path, identity: False)
    assert "may differ by 1 between machines" in hpcm("info", compressed).stdout
    monkeypatch.setattr(registry, "known_name", lambda identity: None)
    assert "depend on the checkpoint, which is not known here" in hpcm("info", compressed).stdout
    assert json.loads(hpcm("info", compressed, "--json").stdout)["exact_pixels"] is None


def test_the_names_of_a_checkpoints_tensors_show_whether_its_pixels_are_exact(tmp_path: Path) -> None:
    assert registry.has_integer_transforms(registry.find_checkpoint("phase1-lite"))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\xff" * 40)
    with pytest.raises(FileError, match="damaged or not a checkpoint"):
        registry.has_integer_transforms(damaged)


def test_info_shows_a_damaged_file_and_says_so(compressed: Path, stream: bytes) -> None:
    compressed.write_bytes(stream[:-9])
    done = hpcm("info", compressed, "--json")
    assert done.exit_code == 3 and "cut short: 9 bytes missing" in done.stderr
    states = [chunk["crc_ok"] for chunk in json.loads(done.stdout)["chunks"]]
    assert states == [True, True, True, True, False]


def test_info_counts_a_models_parameters_and_cost() -> None:
    reported = json.loads(hpcm("info", "--model", "hpcm-base", "--json").stdout)
    assert reported["total"]["parameters"] == 68_505_299
    assert reported["total"]["kmac_per_pixel_with_last_cell"] == pytest.approx(918.6, abs=0.1)
    assert "68,505,299" in hpcm("info", "--model", "hpcm-base").stdout


def test_info_shows_a_checkpoints_identity_and_training(codec: Codec) -> None:
    reported = json.loads(hpcm("info", "--model", "phase1-lite", "--json").stdout)["checkpoint"]
    assert reported["identity"] == codec.identity.hex() and reported["training"]["steps"] > 0


def test_an_alias_is_accepted_wherever_a_model_is_named_and_the_own_name_is_written(
    photograph: Path, tmp_path: Path
) -> None:
    outputs = {}
    for name in ("phase1-lite", "patch-rwkv-small"):
        shown = hpcm("info", "--model", name, "--json")
        assert json.loads(shown.stdout)["model"] == "phase1-lite"
        coded = tmp_path / f"{name}.hpcm"
        assert hpcm("encode", photograph, "-o", coded, "--model", name).exit_code == 0
        decoded = hpcm("decode", coded, "-o", tmp_path / f"{name}.png", "--model", name)
        assert decoded.exit_code == 0, decoded.stderr
        outputs[name] = shown.stdout, coded.read_bytes(), (tmp_path / f"{name}.png").read_bytes()
    assert outputs["phase1-lite"] == outputs["patch-rwkv-small"]


# -------------------------------------------------------------------------------------------------- doctor and train


def test_doctor_finds_everything_here(codec: Codec) -> None:
    done = hpcm("doctor", "--json")
    reported = json.loads(done.stdout)
    assert done.exit_code == 0 and reported["problems"] == []
    assert reported["rANS coder"] == "works"
    assert reported["checkpoints"]["phase1-lite"] == codec.identity.hex()
    assert "Ready" in hpcm("doctor").stdout


def test_doctor_says_what_to_do_about_a_missing_coder(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcm_codec.entropy import rans_encoder

    rans_encoder._ans.cache_clear()
    monkeypatch.setenv("HPCM_OPS", "torch")  # else the compiled coder is used
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    try:
        done = hpcm("doctor")
        assert done.exit_code == 1 and "PROBLEM: compressai's rANS coder" in done.stdout
        assert "pip install" in done.stdout
    finally:
        rans_encoder._ans.cache_clear()


def test_train_runs_stops_and_gives_a_checkpoint(tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(small_photograph(130, 140, seed=number)).save(tmp_path / f"{number}.png")
    packed = hpcm("train", "pack", tmp_path, "-o", tmp_path / "all.pack")
    assert packed.exit_code == 0 and "2 pictures" in packed.stdout
    arguments = ("--data", tmp_path / "all.pack", "--out", tmp_path / "run", "--crops", "0:64x1", "--log-every", 1)
    done = hpcm("train", "run", *arguments, "--steps", 2, "--from", "phase1-lite")
    assert done.exit_code == 0, done.output
    assert "step 2  loss" in done.stderr and "weights.safetensors: 2 steps" in done.stderr
    more = hpcm("train", "run", *arguments, "--steps", 3)
    assert "going on from step 2" in more.stderr and more.exit_code == 0
    reported = json.loads(hpcm("info", "--model", tmp_path / "run" / "weights.safetensors", "--json").stdout)
    assert reported["checkpoint"]["training"]["steps"] == 3 and reported["checkpoint"]["known_as"] is None
    results = tmp_path / "results.json"
    measure = ("train", "validate", tmp_path / "run", "--data", tmp_path, "-q", "0,40,80")
    assert hpcm(*measure, "--json", results).exit_code == 0
    assert json.loads(results.read_text())["images"] == 2
    again = hpcm(*measure, "--against", results)
    assert again.exit_code == 0 and "0.00" in again.stdout, again.output


@pytest.mark.parametrize("crops", ["", "0:128", "0.5:128x8", "0:100x8", "0:128x0", "0:64x1,0:128x1", "0:64x1,1:128x1"])
def test_crops_that_make_no_sense_are_refused(crops: str, tmp_path: Path) -> None:
    done = hpcm("train", "run", "--data", tmp_path, "--out", tmp_path / "run", "--steps", 1, "--crops", crops)
    assert done.exit_code == 2 and "--crops" in done.stderr and not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------------- the library


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(hpcm_codec.__all__) == [
        "Codec",
        "HpcmError",
        "Picture",
        "__version__",
        "decode",
        "encode",
        "load_codec",
    ]
    assert all(hasattr(hpcm_codec, name) for name in hpcm_codec.__all__)
    assert not hasattr(hpcm_codec, "no_such_name")


def test_encode_takes_paths_images_and_arrays(photograph: Path) -> None:
    array = small_photograph()
    streams = {
        hpcm_codec.encode(image, 30, device="cpu")
        for image in (photograph, str(photograph), Image.fromarray(array), array)
    }
    assert len(streams) == 1
    image = hpcm_codec.decode(streams.pop(), device="cpu")
    assert (image.mode, image.size) == ("RGB", (96, 64))


def test_encode_takes_grey_and_transparent_arrays() -> None:
    array = small_photograph()
    assert hpcm_codec.decode(hpcm_codec.encode(array[..., 0], device="cpu"), device="cpu").mode == "L"
    with_alpha = np.dstack([array, array[..., :1]])
    decoded = np.asarray(hpcm_codec.decode(hpcm_codec.encode(with_alpha, device="cpu"), device="cpu"))
    assert np.array_equal(decoded[..., 3], array[..., 0])


@pytest.mark.parametrize(
    "image", [np.full((4, 4, 3), 2.0), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4), np.uint8), 7]
)
def test_encode_refuses_what_is_no_picture(image: object) -> None:
    with pytest.raises(UsageError, match="an image"):
        hpcm_codec.encode(image)  # type: ignore[arg-type]
