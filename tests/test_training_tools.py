"""What surrounds a run: shrunk pictures, scores, light weights in pieces, TensorBoard, torch.compile, and the command line of it all."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from conftest import load_tool, small_photograph
from hpcm_codec.cli.main import main
from hpcm_codec.errors import FileError, UnsupportedError
from hpcm_codec.model.hpcm import HPCM, Noise
from hpcm_codec.model.rate import spread_positions
from hpcm_codec.training.compiling import COMPILED, compile_blocks
from hpcm_codec.training.data import PackedPictures, pack_pictures
from hpcm_codec.training.light import export_light, load_weights, pieces_of
from hpcm_codec.training.loop import Trainer
from hpcm_codec.training.losses import lambda_at, rate_distortion
from hpcm_codec.training.samples import Batch, draw_batch
from hpcm_codec.training.scoring import middles, score
from hpcm_codec.training.settings import CropPhase
from hpcm_codec.weights.checkpoints import load_checkpoint, save_checkpoint
from test_hpcm_phase1 import SMALL
from test_training import QUICK


def hpcm(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# ------------------------------------------------------------------------------------------------------------ the data


def packed(folder: Path, *pixels: np.ndarray) -> PackedPictures:
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    pack_pictures(folder, folder / "all.pack")
    return PackedPictures(folder / "all.pack")


def test_shrunk_crops_show_more_of_a_picture_and_never_more_than_there_is(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    pictures, generator = packed(tmp_path, ramp), np.random.default_rng(0)

    def spans(edge: int, smallest: float) -> np.ndarray:
        """How many rows of the ramp each of 200 crops spans; its range of grey levels says it."""
        crops = [pictures.crop(edge, generator, smallest).int() for _ in range(200)]
        return np.array([int(crop.max() - crop.min()) + 1 for crop in crops])

    assert set(spans(128, 1.0)) == {128}
    shrunk = spans(64, 0.5)
    assert 64 <= shrunk.min() < 70 and 120 < shrunk.max() <= 128
    assert np.median(shrunk) == pytest.approx(64 * 2**0.5, abs=6), "not uniform in the logarithm"
    assert spans(192, 0.25).max() <= 256, "more than the picture"
    assert set(spans(256, 0.25)) == {256}, "a picture that only just holds the crop is not shrunk"


def test_shrinking_averages_instead_of_skipping_pixels(tmp_path: Path) -> None:
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    pictures, generator = packed(tmp_path, stripes), np.random.default_rng(1)
    deviations = [float(pictures.crop(64, generator, 0.25).float().std()) for _ in range(50)]
    assert float(pictures.crop(64, generator).float().std()) > 120, "not shrunk, they stay black and white"
    assert np.median(deviations) < 40 and min(deviations) < 10, "shrunk to less than half, they are grey"


def test_a_pack_that_is_not_the_one_its_index_describes_is_refused(tmp_path: Path) -> None:
    packed(tmp_path, small_photograph(140, 130))
    path = tmp_path / "all.pack"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FileError, match="pack again"):
        PackedPictures(path)


# ---------------------------------------------------------------------------------------------------------- the score


def test_the_score_is_the_mean_loss_at_the_ends_and_the_middle_of_the_range() -> None:
    torch.manual_seed(1)
    model, pictures = HPCM(SMALL).eval(), torch.rand(5, 3, 64, 64)
    found = score(model, pictures)
    assert [row.position for row in found.positions] == [0, 3.5, 7]
    for row in found.positions:
        position = torch.full((5,), row.position)
        with torch.no_grad():
            outcome = rate_distortion(model(pictures, position), pictures, lambda_at(position, SMALL.lambdas))
        assert row.loss == pytest.approx(float(outcome.loss), rel=1e-4)
        assert row.bits_per_pixel == pytest.approx(float(outcome.bits_per_pixel.mean()), rel=1e-4)
        assert row.psnr == pytest.approx(float((-10 * outcome.squared_error.log10()).mean()), rel=1e-4)
    assert found.value == pytest.approx(np.mean([row.loss for row in found.positions]))
    assert spread_positions(1) == (0.0,)


def test_scores_look_at_the_middle_of_every_picture(tmp_path: Path) -> None:
    pixels = small_photograph(80, 70)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.new("L", (64, 64), 51).save(tmp_path / "b.png")
    found = middles(tmp_path, edge=64)
    assert found.shape == (2, 3, 64, 64)
    assert torch.equal(found[0], torch.from_numpy(pixels[3:67, 8:72].transpose(2, 0, 1).copy()).float() / 255)
    assert (found[1] == 0.2).all()
    Image.new("RGB", (63, 64)).save(tmp_path / "c.png")
    with pytest.raises(FileError, match="c.png: smaller"):
        middles(tmp_path, edge=64)


# ------------------------------------------------------------------------------------------------------ light weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of the small model in float32."""
    torch.manual_seed(2)
    save_checkpoint(tmp_path / "weights.safetensors", SMALL, HPCM(SMALL).state_dict(), {"steps": 3})
    return tmp_path / "weights.safetensors"


def test_light_weights_come_back_from_their_pieces(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "light.safetensors"
    assert export_light(str(tmp_path), target) == [target]
    whole = target.read_bytes()
    assert len(whole) < 0.8 * weights.stat().st_size
    target.unlink()
    pieces = export_light(str(weights), target, piece_bytes=len(whole) // 3 - 1)
    assert [piece.name for piece in pieces] == [f"light.safetensors.{n}of4" for n in range(1, 5)]
    assert max(piece.stat().st_size for piece in pieces) <= len(whole) // 3
    (tmp_path / "cat.safetensors").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    for name in (target, pieces[2], tmp_path / "cat.safetensors"):
        light = load_weights(str(name))
        assert light.config == SMALL and light.training["steps"] == 3
        for key, value in load_checkpoint(str(weights)).weights.items():
            assert torch.equal(light.weights[key], value.to(torch.bfloat16)), key
    # fewer pieces replace more
    assert len(export_light(str(weights), target, piece_bytes=len(whole) // 2 + 1)) == 2 == len(pieces_of(target))


def test_pieces_that_do_not_belong_together_are_noticed(weights: Path, tmp_path: Path) -> None:
    target, size = tmp_path / "light.safetensors", weights.stat().st_size // 3
    pieces = export_light(str(weights), target, size)
    last = pieces[-1].read_bytes()
    pieces[-1].write_bytes(bytes([last[0] ^ 1]) + last[1:])
    with pytest.raises(FileError, match="do not belong together"):
        load_weights(str(target))
    pieces[-1].write_bytes(last[:-1])
    with pytest.raises(FileError, match="do not make a checkpoint"):
        load_weights(str(target))
    pieces[0].unlink()
    with pytest.raises(FileError, match="only .*2of"):
        load_weights(str(target))


# -------------------------------------------------------------------------------------------- TensorBoard and compile


def test_tensorboard_gets_the_metrics_of_the_log(pictures: PackedPictures, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = dataclasses.replace(QUICK, steps=4, log_every=2, tensorboard=True)
    Trainer(SMALL, pictures, tmp_path, settings).run()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "bpp", "psnr", "learning_rate", "gradient_norm", "skipped"):
        reported = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert [step for step, _ in reported] == [2, 4]
        assert [value for _, value in reported] == pytest.approx([row[name] for row in rows])


def test_only_tensorboard_needs_tensorboard(
    pictures: PackedPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    Trainer(SMALL, pictures, tmp_path, QUICK)
    with pytest.raises(UnsupportedError, match=r"pip install 'hpcm-codec\[train\]'.*--tensorboard"):
        Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, tensorboard=True))


def test_only_a_run_that_asks_for_it_is_compiled_and_failure_is_reported(
    pictures: PackedPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import Unsupported

    def uncompilable(*arguments: object, **named: object) -> None:
        raise Unsupported("no compiler")

    compiled: list[object] = []

    def compile_never(function: object, **options: object) -> object:
        compiled.append(function)
        return uncompilable

    monkeypatch.setattr(torch, "compile", compile_never)
    Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, steps=1)).run()
    assert not compiled
    trainer = Trainer(SMALL, pictures, tmp_path / "compiled", dataclasses.replace(QUICK, compile=True))
    with pytest.raises(UnsupportedError, match="no compiler.*leave --compile out"):
        trainer.run()
    blocks = [module for module in trainer.model.modules() if isinstance(module, COMPILED)]
    assert len(blocks) > 10 and len(compiled) == len(blocks) + 4, (
        "every block, the rates, and the three parts of a coding step on a GPU"
    )


def test_compiled_blocks_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = HPCM(SMALL), torch.rand(1, 3, 64, 64)
    noise = Noise(torch.rand(1, SMALL.latent_channels, 4, 4) - 0.5, torch.rand(1, SMALL.hyper_channels, 1, 1) - 0.5)
    results = []
    usual = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: usual(function, backend="aot_eager", **options))
    for compiled in (False, True):
        if compiled:
            compile_blocks(model)
        model.zero_grad()
        result = model(x, 3.0, noise)
        (result["x_hat"].square().sum() - result["likelihoods"]["y"].log().sum()).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        results.append([result["x_hat"].detach(), result["likelihoods"]["y"].detach(), *gradients])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------------------------- the command line


def test_light_weights_start_a_run_whose_score_is_printed(tmp_path: Path) -> None:
    folder, run = tmp_path / "pictures", tmp_path / "run"
    folder.mkdir()
    Image.fromarray(small_photograph(256, 256)).save(folder / "a.png")
    light = tmp_path / "light.safetensors"
    written = hpcm("train", "light", "phase1-lite", "-o", light, "--pieces", 9)
    assert written.exit_code == 0 and "light.safetensors.1of" in written.stdout, written.output
    assert hpcm("train", "light", "phase1-lite", "-o", light).exit_code == 5, "pieces are overwritten without -f"
    settings: tuple[object, ...] = (
        "--warmup-steps",
        3,
        "--decay-start",
        0.75,
        "--ema",
        0.5,
        "--clip-norm",
        2.5,
        "--smallest-scale",
        0.25,
    )
    settings += (
        "--decay-rate-factor",
        0.5,
        "--activation-checkpointing",
        "--float32",
        "--optimiser",
        "muon",
        "--learning-rate",
        1e-4,
    )
    arguments: tuple[object, ...] = (
        "--data",
        folder,
        "--out",
        run,
        "--steps",
        1,
        "--crops",
        "0:64x1",
        "--from",
        light,
        *settings,
    )
    arguments += ("--validation", folder)
    done = hpcm("train", "run", *arguments)
    assert done.exit_code == 0, done.output
    assert "1 steps" in done.stderr and "% of the time waiting for data" in done.stderr
    record = load_checkpoint(str(run / "weights.safetensors")).training
    reported = record["settings"]
    expected: dict[str, object] = {
        "warmup_steps": 3,
        "decay_start": 0.75,
        "ema": 0.5,
        "clip_norm": 2.5,
        "smallest_scale": 0.25,
    }
    expected |= {"decay_rate_factor": 0.5, "activation_checkpointing": True, "optimiser": "muon", "compile": False}
    expected |= {"bfloat16": False}
    assert {key: reported[key] for key in expected} == expected
    scores = hpcm("train", "score", run, light, "--data", folder, "--json")
    assert scores.exit_code == 0, scores.output
    after, before = (json.loads(line) for line in scores.stdout.splitlines())
    assert after["pictures"] == 1 and len(after["positions"]) == 3
    assert after["value"] == pytest.approx(before["value"], rel=0.05), "the run did not start from the light weights"
    assert record["score"] == pytest.approx(after["value"], rel=0.01), "scored on other pictures before it was saved"
    in_words = hpcm("train", "score", run, "--data", folder).stdout
    assert f"score {after['value']:.4f} on 1 pictures" in in_words and "position 3.5" in in_words


def test_a_shift_of_gradients_is_told_from_noise(
    root: Path, pictures: PackedPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = load_tool(root, "training_precision")
    settings = dataclasses.replace(QUICK, crops=(CropPhase(0, 64, 2),))
    batches = [draw_batch(pictures, SMALL, settings, settings.crops[0], step) for step in range(4)]
    torch.manual_seed(3)
    model = HPCM(SMALL).train()
    found = tool.compared(model, iter(batches))
    assert len(found) > 50 and all(0 < size < math.inf for _, size in found.values())
    assert np.median([shift / size for shift, size in found.values()]) < 0.8
    plain, shifted = tool.gradients, "g_a.1.expand.weight"

    def with_a_shift(model: HPCM, batch: Batch, half: bool) -> dict[str, torch.Tensor]:
        gradients: dict[str, torch.Tensor] = plain(model, batch, half)
        if half:
            gradients[shifted] += 10 * gradients[shifted].abs().mean()
        return gradients

    monkeypatch.setattr(tool, "gradients", with_a_shift)
    shift, size = tool.compared(model, iter(batches))[shifted]
    assert shift > 0.9 * size > 3 * found[shifted][1]
