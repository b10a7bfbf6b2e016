"""Bad input of every kind: one line on stderr, the documented exit status, no output file, no traceback."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from conftest import small_photograph
from hpcm_codec.bitstream.container import Header, HpcmStream, parse_stream, write_stream
from hpcm_codec.cli.main import main
from hpcm_codec.codec import Codec
from hpcm_codec.errors import HpcmError
from hpcm_codec.evaluation.machine import peak_memory_of_this_process

HPCM = [sys.executable, "-m", "hpcm_codec"]
GIGABYTE = 10**9
pytestmark = pytest.mark.usefixtures("no_leftovers")


def refused(arguments: Sequence[object], status: int, reason: str, output: Path | None = None) -> None:
    """Run in this process and check the status, the one line, that nothing else was said, and that no output came to be."""
    before = None if output is None or not output.is_file() else output.read_bytes()
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    lines = done.stderr.splitlines()
    assert done.exit_code == status, done.output
    assert len(lines) == 1 and lines[0].startswith("hpcm: "), done.stderr
    assert re.search(reason, lines[0]), lines[0]
    assert done.stdout == ""
    if output is not None:
        assert (output.read_bytes() if output.is_file() else None) == before


def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[bytes]:
    command = [*HPCM, *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, timeout=120, **settings)  # type: ignore[call-overload,no-any-return]


# ---------------------------------------------------------------------------------------------------------- bad pictures


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"plain text, no picture", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image|damaged or truncated"),
        (b"BM" + bytes(200), "not an image|damaged or truncated|no pixels"),
    ],
)
def test_what_is_not_an_image(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    refused(["encode", tmp_path / "bad.png"], 5, f"bad.png: .*({reason})", tmp_path / "bad.hpcm")


def test_a_truncated_picture(photograph: Path) -> None:
    photograph.write_bytes(photograph.read_bytes()[:2000])
    refused(["encode", photograph], 5, "photo.png: .*truncated", photograph.with_suffix(".hpcm"))


def test_missing_and_unreadable_inputs(tmp_path: Path, photograph: Path) -> None:
    refused(["encode", tmp_path / "no.png"], 5, "no.png: no such file")
    refused(["decode", tmp_path / "no.hpcm"], 5, "no.hpcm: no such file")
    refused(["info", tmp_path / "no.hpcm"], 5, "no.hpcm: no such file")
    refused(["encode", photograph / "sub.png"], 5, "not a directory")
    refused(["encode", tmp_path / ("n" * 300)], 5, "too long")
    (tmp_path / "empty").mkdir()
    refused(["encode", tmp_path / "empty"], 5, "empty: no pictures")
    refused(["decode", tmp_path / "empty"], 5, "empty: no .hpcm files")
    refused(["info", tmp_path / "empty"], 5, "is a directory")


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/1/mem").exists(), reason="root reads everything")
def test_an_input_without_permission(tmp_path: Path, photograph: Path) -> None:
    if os.geteuid() == 0:
        refused(["encode", "/proc/1/mem", "-o", tmp_path / "o.hpcm"], 5, "/proc/1/mem: ")  # even root cannot
    else:
        photograph.chmod(0)
        refused(["encode", photograph], 5, "permission denied")


def test_too_many_pixels(photograph: Path, compressed: Path, tmp_path: Path) -> None:
    refused(["encode", photograph, "--max-pixels", 6143], 5, "above the limit of 6143", photograph.with_suffix(".hpcm"))
    output = tmp_path / "o.png"
    refused(["decode", compressed, "-o", output, "--max-pixels", 6143], 3, "above the limit of 6143", output)


# ----------------------------------------------------------------------------------------------------------- bad streams


def test_what_is_not_a_hpcm_file(tmp_path: Path, photograph: Path) -> None:
    (tmp_path / "empty.hpcm").write_bytes(b"")
    for source, reason in ((photograph, "photo.png: not a .hpcm file"), (tmp_path / "empty.hpcm", "it is empty")):
        for arguments in (["decode", source, "-o", tmp_path / "o.png"], ["info", source]):
            refused(arguments, 3, reason, tmp_path / "o.png")


@pytest.mark.parametrize("length", [1, 3, 5, 20, 29, 60, -1])
def test_a_truncated_stream(compressed: Path, stream: bytes, length: int) -> None:
    compressed.write_bytes(stream[:length])
    refused(["decode", compressed], 3, "photo.hpcm: .*(cut short|damaged)", compressed.with_suffix(".png"))


def test_a_stream_with_something_after_its_end(compressed: Path, stream: bytes) -> None:
    compressed.write_bytes(stream + b"more")
    refused(["decode", compressed], 3, "4 bytes too many", compressed.with_suffix(".png"))


def test_a_newer_format_version(compressed: Path, stream: bytes) -> None:
    compressed.write_bytes(stream[:3] + bytes([stream[3] & 0xF0 | 2]) + stream[4:])
    output = compressed.with_suffix(".png")
    refused(["decode", compressed], 4, "newer format version 2.*update", output)
    refused(["info", compressed], 4, "newer format version 2.*update")


def test_another_models_stream(compressed: Path, stream: bytes) -> None:
    parsed = parse_stream(stream)
    header = Header(96, 64, 80, b"\7" * 8, grey=False, float_profile=True)
    compressed.write_bytes(write_stream(HpcmStream(header, parsed.tiles, {})))
    output = compressed.with_suffix(".png")
    refused(["decode", compressed], 4, "made with the model 0707070707070707", output)
    refused(["decode", compressed, "--model", "phase1-lite"], 4, "made with the model 0707070707070707", output)


def test_a_header_that_claims_a_billion_by_a_billion_pixels(tmp_path: Path, stream: bytes) -> None:
    billion = bytes([0x80, 0x94, 0xEB, 0xDC, 0x03])  # 10⁹ as LEB128
    (tmp_path / "huge.hpcm").write_bytes(stream[:13] + billion + billion + stream[15:])
    refused(
        ["decode", tmp_path / "huge.hpcm"], 3, "1000000000×1000000000 pixels, above the limit", tmp_path / "huge.png"
    )
    limit = 10**18
    refused(["decode", tmp_path / "huge.hpcm", "--max-pixels", limit], 3, "cut short", tmp_path / "huge.png")
    refused(["info", tmp_path / "huge.hpcm"], 3, "cut short")


def test_500_flipped_and_cut_streams_end_in_an_error_or_the_same_picture(codec: Codec, stream: bytes) -> None:
    expected = codec.decode(stream).pixels
    peak_before = peak_memory_of_this_process()  # of tests that ran before
    random = np.random.default_rng(2026)
    refusals = 0
    started = time.monotonic()
    for trial in range(500):
        damaged = bytearray(stream)
        if trial % 5 == 4:
            del damaged[int(random.integers(len(stream))) :]
        else:
            for _ in range(1 + trial % 3):
                # half of the flips hit the header, where they can do the most harm
                place = int(random.integers(40 if trial % 2 else len(stream)))
                damaged[place] ^= 1 << int(random.integers(8))
        try:
            assert np.array_equal(codec.decode(bytes(damaged)).pixels, expected)
        except HpcmError as error:
            refusals += 1
            assert error.exit_status in (3, 4) and "\n" not in str(error)
    assert refusals > 450
    assert time.monotonic() - started < 300
    assert peak_memory_of_this_process() < max(2 * GIGABYTE, peak_before + GIGABYTE // 4)


def test_damage_under_sound_checksums_ends_in_an_error_or_a_picture(codec: Codec, stream: bytes) -> None:
    """An attacker can compute the CRCs anew, so the entropy coder itself must be safe with any payload."""
    parsed = parse_stream(stream)
    peak_before = peak_memory_of_this_process()  # of tests that ran before
    random = np.random.default_rng(7)
    for trial in range(100):
        payloads = {name: bytearray(getattr(parsed.tiles[0], name)) for name in ("hyper", "s1", "s2", "s3")}
        victim = payloads[random.choice(sorted(payloads))]
        if trial % 4 == 3:
            del victim[int(random.integers(len(victim))) :]
        else:
            victim[int(random.integers(len(victim)))] ^= 1 << int(random.integers(8))
        tile = type(parsed.tiles[0])(**{k: bytes(v) for k, v in payloads.items()}, symbol_check=trial)
        try:
            codec.decode(write_stream(HpcmStream(parsed.header, (tile,), {})))
        except HpcmError as error:
            assert error.exit_status == 3
    assert peak_memory_of_this_process() < max(2 * GIGABYTE, peak_before + GIGABYTE // 4)


# ----------------------------------------------------------------------------------------------------------- bad outputs


def test_existing_outputs_are_kept_unless_forced(photograph: Path, compressed: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.hpcm"
    output.write_bytes(b"mine")
    refused(["encode", photograph, "-o", output], 5, "o.hpcm: exists already.*-f", output)
    picture = tmp_path / "o.png"
    picture.write_bytes(b"mine")
    refused(["decode", compressed, "-o", picture], 5, "o.png: exists already.*-f", picture)
    assert CliRunner().invoke(main, ["encode", str(photograph), "-o", str(output), "-f"]).exit_code == 0
    assert output.read_bytes()[:3] == b"HPC"


def test_an_output_that_is_the_input(photograph: Path, compressed: Path) -> None:
    refused(["encode", photograph, "-o", photograph, "-f"], 2, "would be overwritten", photograph)
    link = compressed.with_name("link.png")
    link.symlink_to(compressed)
    refused(["decode", compressed, "-o", link, "-f"], 2, "would be overwritten", compressed)


def test_outputs_that_cannot_be_written(photograph: Path, compressed: Path, tmp_path: Path) -> None:
    refused(["encode", photograph, "-o", tmp_path / "no" / "o.hpcm"], 5, "no: no such file or directory")
    refused(["encode", photograph, "-o", photograph / "o.hpcm"], 5, "not a directory")
    refused(["encode", photograph, "-o", "/proc/o.hpcm"], 5, "/proc/o.hpcm: ")
    refused(["decode", compressed, "-o", tmp_path / "o.xyz"], 5, "no image format is known by the extension .xyz")
    refused(["decode", compressed, "-o", tmp_path / "o"], 5, "no extension")


def test_a_format_that_cannot_hold_the_picture(tmp_path: Path, codec: Codec) -> None:
    Image.fromarray(np.dstack([small_photograph(), small_photograph()[..., :1]])).save(tmp_path / "a.png")
    assert CliRunner().invoke(main, ["encode", str(tmp_path / "a.png")]).exit_code == 0
    output = tmp_path / "a.jpg"
    refused(["decode", tmp_path / "a.hpcm", "-o", output], 5, "a.jpg: .*transparency.*PNG", output)


def test_a_full_disk(photograph: Path, compressed: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    for arguments, name in ((["encode", photograph], "output.hpcm"), (["decode", compressed], "output.png")):
        output = tmp_path / name
        done = run(*arguments, "-o", output, preexec_fn=small_files, env={**os.environ, "HPCM_OPS": "torch"})
        lines = done.stderr.decode().splitlines()
        assert done.returncode == 5 and f"{name}: larger than" in lines[-1], lines
        assert "Traceback" not in done.stderr.decode() and not output.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_stdout(compressed: Path) -> None:
    for arguments in (["decode", compressed, "-o", "-"], ["info", compressed], ["--help"]):
        with open("/dev/full", "wb") as full:
            done = run(*arguments, stdout=full)
        assert done.returncode == 5
        assert (
            done.stderr.decode()
            .splitlines()[-1]
            .endswith("stdout: no space left on the device; free some space, or choose another place")
        )


def test_a_reader_that_leaves_is_no_error_worth_a_line(compressed: Path) -> None:
    for arguments in (["--help"], ["info", "--help"], ["info", compressed], ["decode", compressed, "-o", "-"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = run(*arguments, stdout=writing)
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, b"")


# ----------------------------------------------------------------------------------------------------------- bad command


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["no-such-command"], "No such command 'no-such-command'"),
        (["encode"], "Missing argument"),
        (["encode", "--no-such-option", "x"], "No such option"),
        (["encode", "x.png", "-q", "101"], "quality 101 is not between"),
        (["encode", "x.png", "-q", "nan"], "quality nan is not between"),
        (["encode", "x.png", "-q", "good"], "not a valid float"),
        (["encode", "-", "--json"], "--json and the picture"),
        (["decode", "x.hpcm", "--format", "xyz"], "'xyz' is not one of"),
        (["info"], "a FILE or --model"),
        (["info", "x.hpcm", "--model", "phase1"], "a FILE or --model"),
        (["train", "run", "--data", "x", "--out", "y"], "--steps or --minutes"),
    ],
)
def test_command_lines_that_make_no_sense(arguments: list[str], reason: str) -> None:
    refused(arguments, 2, reason)


def test_models_and_devices_that_are_not_there(photograph: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.hpcm"
    refused(["encode", photograph, "-o", output, "--model", "phase9"], 4, "'phase9'.*phase1-lite", output)
    refused(["encode", photograph, "-o", output, "--model", "no.safetensors"], 5, "no.safetensors: no such", output)
    refused(
        ["encode", photograph, "-o", output, "--model", photograph], 5, "photo.png: damaged or not a checkpoint", output
    )
    refused(["encode", photograph, "-o", output, "--device", "abacus"], 2, "--device takes", output)
    refused(["info", "--model", "phase9"], 4, "'phase9'.*hpcm-base")


# -------------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize(("number", "line"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")])
def test_a_signal_ends_it_in_one_line_and_leaves_nothing(tmp_path: Path, number: signal.Signals, line: str) -> None:
    os.mkfifo(tmp_path / "photo.png")  # without a writer: reading it blocks forever
    output = tmp_path / "o.hpcm"
    process = subprocess.Popen(
        [*HPCM, "encode", str(tmp_path / "photo.png"), "-o", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(1.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.decode()) == (128 + number, b"", f"hpcm: {line}\n")
    assert not output.exists()


def test_ctrl_c_while_it_works_leaves_nothing(tmp_path: Path) -> None:
    Image.fromarray(small_photograph(1500, 1200)).save(tmp_path / "photo.png")
    for seconds in (0.3, 1.0, 2.5):  # while importing, while loading, while encoding
        process = subprocess.Popen(
            [*HPCM, "encode", str(tmp_path / "photo.png"), "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        if process.returncode:  # else it was faster than we
            assert (process.returncode, err.decode()) == (130, "hpcm: interrupted\n")
            assert os.listdir(tmp_path) == ["photo.png"]
        for path in tmp_path.glob("*.hpcm"):
            path.unlink()


# --------------------------------------------------------------------------------------------------------------- bugs


def test_a_bug_is_one_line_too_and_shows_its_traceback_on_request(
    photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Codec, *arguments: object) -> bytes:
        raise ZeroDivisionError("of all\nthings")

    monkeypatch.setattr(Codec, "encode", broken)
    refused(["encode", photograph], 1, "a bug: ZeroDivisionError: of all things; please report it.*HPCM_DEBUG=1")
    monkeypatch.setenv("HPCM_DEBUG", "1")
    done = CliRunner().invoke(main, ["encode", str(photograph)])
    assert isinstance(done.exception, ZeroDivisionError)


def test_too_little_memory_is_said_so(photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(self: Codec, *arguments: object) -> bytes:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"
        )

    monkeypatch.setattr(Codec, "encode", hungry)
    refused(["encode", photograph], 1, "photo.png: not enough memory", photograph.with_suffix(".hpcm"))
