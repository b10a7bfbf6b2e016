"""Runs that go on: in several processes, for longer than planned, after a kill at any moment, with what older versions saved."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcm_codec.cli.train_run import _condition
from hpcm_codec.errors import FileError, UnsupportedError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training import loop
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.loop import Trainer
from hpcm_codec.training.optimisers import Optimiser, is_matrix
from hpcm_codec.training.samples import draw_batch
from hpcm_codec.training.settings import CropPhase, TrainSettings, WarmUp, schedule_factor, warm_up_after
from hpcm_codec.weights import checkpoints
from hpcm_codec.weights.checkpoints import load_checkpoint
from test_hpcm_phase1 import SMALL
from test_training import QUICK

pytestmark = pytest.mark.usefixtures("small_scores")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------- several processes


def test_processes_share_the_samples_of_a_step(pictures: PackedPictures) -> None:
    alone = draw_batch(pictures, SMALL, QUICK, CropPhase(0, 64, 4), step=7)
    for rank in range(2):
        part = draw_batch(pictures, SMALL, QUICK, CropPhase(0, 64, 2), step=7, rank=rank, world=2)
        assert torch.equal(part.pixels, alone.pixels[rank::2])
        assert torch.equal(part.position, alone.position[rank::2])
        assert torch.equal(part.noise.latents, alone.noise.latents[rank::2])
        assert torch.equal(part.noise.hyper, alone.noise.hyper[rank::2])
    another = draw_batch(pictures, SMALL, QUICK, CropPhase(0, 64, 4), step=8)
    assert not torch.equal(another.noise.latents, alone.noise.latents)


def test_noise_is_uniform_and_decides_the_rates_in_training(pictures: PackedPictures) -> None:
    batch = draw_batch(pictures, SMALL, QUICK, CropPhase(0, 128, 8), step=0)
    values = torch.cat((batch.noise.latents.flatten(), batch.noise.hyper.flatten()))
    assert -0.5 <= values.min() < -0.49 and 0.49 < values.max() < 0.5 and abs(values.mean()) < 0.02
    assert values.var() == pytest.approx(1 / 12, rel=0.05)
    model, x = HPCM(SMALL).train(), batch.pixels.float() / 255

    def rates(noise: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(x, batch.position, noise)["likelihoods"]["y"]

    assert torch.equal(rates(batch.noise), rates(batch.noise))
    assert not torch.equal(rates(batch.noise), rates(None))


WORKER = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_training import QUICK, SMALL, PackedPictures, Trainer
from hpcm_codec.training.settings import CropPhase
settings = dataclasses.replace(QUICK, log_every=1, crops=(CropPhase(0, 64, int(sys.argv[4])),))
trainer = Trainer(SMALL, PackedPictures(Path(sys.argv[2])), Path(sys.argv[3]), settings)
trainer.run()
print(float(sum(p.double().sum() for p in trainer.model.parameters())))
"""


def trained_in(processes: int, crops_each: int, pictures: PackedPictures, folder: Path) -> list[bytes]:
    """Train in that many processes, as torchrun would start them; what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    together |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(pictures.path), str(folder)]
    started = [
        subprocess.Popen(
            [*command, str(crops_each)],
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(processes)
    ]
    reported = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes
    return reported


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(pictures: PackedPictures, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    trained_in(1, 4, pictures, tmp_path / "one")
    sums = trained_in(2, 2, pictures, tmp_path / "two")
    assert sums[0] == sums[1], "the processes hold different weights"
    assert trained_in(2, 2, pictures, tmp_path / "two") == sums, (
        "a finished run goes on from its state, with nothing to do"
    )
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert len(one) == len(two) == 6
    for key in ("loss", "bpp", "psnr", "gradient_norm"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=2e-3), key
    losses = [row["loss"] for row in one]
    assert np.ptp(losses) > 0.02 * losses[0], "a curve this flat would be equal by accident"


def test_only_several_processes_need_accelerate(
    pictures: PackedPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    Trainer(SMALL, pictures, tmp_path, QUICK)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match=r"accelerate; pip install 'hpcm-codec\[train\]'"):
        Trainer(SMALL, pictures, tmp_path, QUICK)


# --------------------------------------------------------------------------------------------------- longer schedules


def test_a_longer_run_before_the_decay_goes_on_at_its_constant_rate() -> None:
    planned = TrainSettings(steps=1000, warmup_steps=100, decay_start=0.8)
    longer = dataclasses.replace(planned, steps=5000)
    warm_up = warm_up_after(700, 0, planned, WarmUp(), longer)
    assert [schedule_factor(step / 5000, step, longer, warm_up) for step in (700, 3999)] == [1, 1]
    assert schedule_factor(0.9, 4500, longer, warm_up) == pytest.approx(0.5)


def test_a_run_in_its_decay_is_warmed_up_again_on_a_longer_schedule() -> None:
    planned = TrainSettings(steps=1000, warmup_steps=100, decay_start=0.8)
    longer = dataclasses.replace(planned, steps=5000)
    last = schedule_factor(0.9, 899, planned)
    warm_up = warm_up_after(900, 0, planned, WarmUp(), longer)
    factors = [schedule_factor(step / 5000, step, longer, warm_up) for step in range(900, 1100)]
    assert factors[0] == pytest.approx(last + 0.01, abs=1e-3) and last < 0.6
    assert max(np.diff(factors)) <= 0.01 + 1e-9 and factors[-1] == 1
    # cut in the middle of it and resumed with the same command: nothing changes
    assert warm_up_after(930, 0, longer, warm_up, longer) == warm_up
    # in minutes as in steps
    in_minutes = dataclasses.replace(planned, steps=None, minutes=10.0)
    again = warm_up_after(900, 540.0, in_minutes, WarmUp(), dataclasses.replace(in_minutes, minutes=50.0))
    assert again.factor == pytest.approx(last, abs=5e-3)


def test_a_finished_run_goes_on_when_it_is_given_more_steps(pictures: PackedPictures, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, steps=6, warmup_steps=4, decay_start=0.5, log_every=1)
    Trainer(SMALL, pictures, tmp_path, settings).run()
    Trainer(SMALL, pictures, tmp_path, settings).run()
    assert len(rows_of(tmp_path)) == 6, "a finished run has nothing to do"
    Trainer(SMALL, pictures, tmp_path, dataclasses.replace(settings, steps=30, learning_rate=7e-4)).run(
        asked_to_stop=lambda: len(rows_of(tmp_path)) == 12
    )
    rates = [row["learning_rate"] / 7e-4 for row in rows_of(tmp_path)]
    assert rates[5] < 0.6 and max(np.diff(rates[5:])) < 0.26 and rates[11] == pytest.approx(1, abs=0.02)


# -------------------------------------------------------------------------------------------------- kills and saves


def train_and_be_killed(pack: Path, folder: Path, moment: str, save: int) -> None:
    """Train while saving before every step, and die without a word at a moment of the `save`th save."""
    torch.set_num_threads(1)
    settings = dataclasses.replace(QUICK, steps=4, save_minutes=0, log_every=1)
    trainer = Trainer(SMALL, PackedPictures(pack), folder, settings)
    saves = 0
    write, write_weights, replace = torch.save, checkpoints.save_checkpoint, os.replace

    def die() -> None:
        if saves == save:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting(state: object, file: Any) -> None:
        nonlocal saves
        saves += 1
        write(state, file)
        if moment == "in the middle of the state" and saves == save:
            file.truncate(file.tell() // 2)
            file.flush()
            die()

    def replacing(source: Any, target: Any) -> None:
        places = {"state.pt": "before the state is in place", "weights.safetensors": "before the weights are in place"}
        if moment == places.get(Path(target).name):
            die()
        replace(source, target)

    def weights(*arguments: Any) -> bytes:
        if moment == "between state and weights":
            die()
        return write_weights(*arguments)

    torch.save, os.replace = counting, replacing  # type: ignore[assignment]
    vars(loop)["save_checkpoint"] = weights
    trainer.run()


MOMENTS = (
    "in the middle of the state",
    "before the state is in place",
    "between state and weights",
    "before the weights are in place",
)


def in_a_fresh_process(*arguments: Any) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=train_and_be_killed, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.slow
def test_a_run_killed_at_any_moment_of_saving_ends_as_one_that_was_not(
    pictures: PackedPictures, tmp_path: Path
) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    left_behind = []
    for moment in MOMENTS:
        # the first save repeats what was resumed, the second follows a step
        assert in_a_fresh_process(pictures.path, cut, moment, 2) == -signal.SIGKILL
        left_behind.append(len(list(cut.glob(".hpcm-*.tmp"))))
        load_checkpoint(str(cut / "weights.safetensors"))
    assert left_behind == [1, 1, 0, 1], "the kills came at other moments than they should"
    for folder in (cut, whole):
        assert in_a_fresh_process(pictures.path, folder, "never", 0) == 0
    identities = [load_checkpoint(str(folder / "weights.safetensors")).identity for folder in (cut, whole)]
    assert identities[0] == identities[1]
    assert [row["step"] for row in rows_of(cut)] == [1, 2, 3, 4]
    assert not list(cut.glob(".hpcm-*.tmp"))


def test_a_truncated_line_of_metrics_and_lines_after_the_last_save_are_dropped(
    pictures: PackedPictures, tmp_path: Path
) -> None:
    settings = dataclasses.replace(QUICK, steps=2, log_every=1)
    Trainer(SMALL, pictures, tmp_path, settings).run()
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    Trainer(SMALL, pictures, tmp_path, settings)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]


def test_a_damaged_state_is_reported(pictures: PackedPictures, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(FileError, match="damaged"):
        Trainer(SMALL, pictures, tmp_path, QUICK)


def test_states_of_earlier_and_later_versions_are_continued(pictures: PackedPictures, tmp_path: Path) -> None:
    Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, steps=3)).run()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["warm_up"]
    state["generators"] = [(torch.get_rng_state(), json.dumps(np.random.default_rng(0).bit_generator.state))]
    earlier = ("smallest_scale", "optimiser", "activation_checkpointing", "compile", "tensorboard")
    state["settings"] = {key: value for key, value in state["settings"].items() if key not in earlier}
    torch.save({**state, "settings": {**state["settings"], "of tomorrow": 1}}, tmp_path / "state.pt")
    resumed = Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, decay_rate_factor=0.25))
    assert resumed.step == 3
    groups = resumed.optimiser.state_dict()["param_groups"]
    assert [group["factor"] for group in groups] == [1.0, 0.25], "the new settings are not taken"
    resumed.run()
    assert resumed.step == 6


# ------------------------------------------------------------------------------------------------- optimisers, memory


def check_exact_resuming(pictures: PackedPictures, folder: Path, settings: TrainSettings, half: int) -> None:
    """A run that is cut after `half` steps ends as one of twice as many that is not cut; AdamW cannot continue it."""
    for name, lengths in (("cut", (half, 2 * half)), ("whole", (2 * half,))):
        for steps in lengths:
            Trainer(SMALL, pictures, folder / name, dataclasses.replace(settings, steps=steps)).run()
    cut, whole = (load_checkpoint(str(folder / name / "weights.safetensors")) for name in ("cut", "whole"))
    assert cut.identity == whole.identity
    with pytest.raises(FileError, match=f"optimiser {settings.optimiser}"):
        Trainer(SMALL, pictures, folder / "cut", QUICK)


def test_muon_has_the_matrices_and_resumes_exactly(pictures: PackedPictures, tmp_path: Path) -> None:
    check_exact_resuming(pictures, tmp_path, dataclasses.replace(QUICK, optimiser="muon", decay_start=1.0), 2)


def test_muon_makes_all_singular_values_of_a_step_alike() -> None:
    torch.manual_seed(0)
    model = HPCM(SMALL)
    named = dict(model.named_parameters())
    convolution = "context.cells.0.inner.query.weight"
    assert is_matrix(convolution, named[convolution]) and named[convolution].shape == (16, 32, 1, 1)
    assert not is_matrix("g_a.1.factor.level_values", named["g_a.1.factor.level_values"])
    before = named[convolution].detach().clone()
    optimiser = Optimiser(model, dataclasses.replace(QUICK, optimiser="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step(1e-3)
    values = torch.linalg.svdvals((named[convolution].detach() - before).flatten(1))
    assert values[0] < 2.5 * values[-1], "the singular values of the random gradient spread twice as wide"


def test_projections_between_pixels_and_patches_have_a_rate_of_their_own(
    pictures: PackedPictures, tmp_path: Path
) -> None:
    settings = dataclasses.replace(
        QUICK, steps=1, warmup_steps=1, ema=0.0, decay_start=0.99, patch_rate_factor=0.1, transform_rate_factor=0.5
    )
    trainer = Trainer(SMALL, pictures, tmp_path, settings)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    moved = {name: (value - before[name]).abs().max() for name, value in trainer.model.state_dict().items()}
    # the first step of Adam moves a weight by the rate, whatever its gradient
    last = len(trainer.model.g_s) - 1
    for name in ("g_a.0.weight", "g_a.0.bias", f"g_s.{last}.weight", f"g_s.{last}.bias"):
        assert moved[name] == pytest.approx(0.1 * settings.learning_rate, rel=1e-2), name
    assert moved["g_a.1.expand.weight"] == pytest.approx(0.5 * settings.learning_rate, rel=1e-2)
    assert moved["h_a.0.weight"] == pytest.approx(settings.learning_rate, rel=1e-2)
    resumed = Trainer(SMALL, pictures, tmp_path, dataclasses.replace(settings, steps=2))
    assert resumed.step == 1
    with pytest.raises(FileError, match="patch rate factor"):
        Trainer(SMALL, pictures, tmp_path, QUICK)
    with pytest.raises(FileError, match="transform rate factor is 0.5"):
        Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, patch_rate_factor=0.1))


def test_conditioned_runs_begin_with_the_same_function(pictures: PackedPictures, tmp_path: Path) -> None:
    trainer = Trainer(SMALL, pictures, tmp_path, QUICK)
    x = pictures.sample(edge=64, batch=2)
    trainer.model.eval()
    with torch.no_grad():
        before, weights = trainer.model(x, 0.5)["x_hat"], trainer.model.state_dict()["g_a.0.weight"].clone()
        _condition(trainer)
        after = trainer.model(x, 0.5)["x_hat"]
    conditioned = trainer.model.state_dict()["g_a.0.weight"]
    assert not torch.equal(weights, conditioned)
    assert torch.allclose(before, after, atol=1e-4)
    assert torch.equal(trainer.average.values["g_a.0.weight"], conditioned)


def test_activation_checkpointing_changes_nothing_but_memory(pictures: PackedPictures, tmp_path: Path) -> None:
    for name, saving in (("plain", False), ("saving", True)):
        settings = dataclasses.replace(QUICK, steps=2, activation_checkpointing=saving)
        trainer = Trainer(SMALL, pictures, tmp_path / name, settings)
        assert all(cell.use_checkpoint is saving for cell in trainer.model.context.cells)
        trainer.run()
    plain, saving_too = (load_checkpoint(str(tmp_path / n / "weights.safetensors")) for n in ("plain", "saving"))
    assert plain.config == saving_too.config == SMALL
    for name, value in plain.weights.items():
        assert torch.allclose(value, saving_too.weights[name], atol=1e-4), name
    # and the run can go on without
    assert Trainer(SMALL, pictures, tmp_path / "saving", QUICK).step == 2
