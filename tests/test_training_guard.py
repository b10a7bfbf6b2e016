"""Runs that diverge: single outliers are left out, diverged weights are replaced by good ones and never saved over them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.model.hpcm import HPCM
from hpcm_codec.training import guard as guarding
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.guard import ENOUGH, MANY, RECENT, Guard, Verdict, objection
from hpcm_codec.training.loop import Trainer
from hpcm_codec.training.processes import Processes
from hpcm_codec.training.samples import Batch
from hpcm_codec.training.scoring import score, shared_score
from hpcm_codec.training.states import TRIES
from hpcm_codec.weights.checkpoints import load_checkpoint
from test_hpcm_phase1 import SMALL
from test_training import QUICK
from test_training_runs import rows_of, trained_in

pytestmark = pytest.mark.usefixtures("small_scores")

USE, SKIP, GO_BACK = Verdict.USE, Verdict.SKIP, Verdict.GO_BACK
STEADY = dataclasses.replace(QUICK, steps=24, log_every=1, learning_rate=1e-4, decay_start=0.99)

# ---------------------------------------------------------------------------------------------------------- the guard


def steady_guard(steps: int = ENOUGH) -> Guard:
    guard = Guard()
    assert {guard.judge(1.0 + 0.01 * (step % 7), 2.0 + 0.1 * (step % 5)) for step in range(steps)} == {USE}
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(2.5, 2.0), (1.0, 30.0), (math.nan, 2.0), (1.0, math.inf), (37.0, 1e9)])
def test_a_single_outlier_is_left_out_and_forgotten(loss: float, norm: float) -> None:
    guard = steady_guard()
    assert guard.judge(loss, norm) is SKIP and not guard.settled
    assert [guard.judge(1.0, 2.0) for _ in range(3)] == [USE] * 3 and guard.settled


@pytest.mark.parametrize("every", [1, 4])
def test_outliers_that_do_not_end_send_the_run_back(every: int) -> None:
    guard = steady_guard()
    verdicts = [guard.judge(*((37.0, math.inf) if step % every == 0 else (1.0, 2.0))) for step in range(MANY * every)]
    assert verdicts.count(SKIP) == MANY - 1 and verdicts.index(GO_BACK) == (MANY - 1) * every
    guard.went_back()
    assert guard.verdict is USE and guard.judge(37.0, 2.0) is SKIP, "the medians are kept, the outliers are not"


def test_after_going_back_a_state_is_only_good_when_steps_have_been_used_again() -> None:
    guard = steady_guard()
    guard.went_back()
    settled = []
    for _ in range(RECENT):
        guard.judge(1.0, 2.0)
        settled.append(guard.settled)
    assert settled == [False] * (RECENT - 1) + [True]


def test_outliers_now_and_then_never_send_the_run_back() -> None:
    guard = steady_guard()
    for step in range(600):
        assert guard.judge(37.0 if step % 6 == 0 else 1.0, 2.0) is not GO_BACK


def test_the_first_steps_are_only_judged_by_whether_they_are_finite() -> None:
    guard = Guard()
    assert {guard.judge(10.0 / (step + 1) + step % 9, 100.0 / (step + 1)) for step in range(ENOUGH - 1)} == {USE}
    assert [Guard().judge(math.nan, 1.0)] == [SKIP]
    guard = Guard()
    assert [guard.judge(math.nan, math.nan) for _ in range(MANY)][-1] is GO_BACK


@pytest.mark.parametrize("change", [5.0, 0.2])
def test_drifts_and_new_crops_are_no_outliers(change: float) -> None:
    guard = Guard()
    for step in range(1000):
        factor = change ** (step / 1000)
        assert guard.judge(1.2 * factor, 2.5 * factor, kind=128) is USE
    for _ in range(100):
        assert guard.judge(6.0 * change, 40 * change, kind=256) is USE


@pytest.mark.parametrize(("loss_spread", "norm_spread"), [(0.15, 0.2), (0.3, 0.3)])
def test_steps_as_noisy_as_real_ones_are_used(loss_spread: float, norm_spread: float) -> None:
    """Spreads of logarithms: of steps of 8 crops of 256×256, and of 2 (docs/training.md)."""
    random, guard = np.random.default_rng(0), Guard()
    losses = 1.17 * np.exp(random.normal(0, loss_spread, 3000))
    norms = 2.5 * np.exp(random.normal(0, norm_spread, 3000))
    verdicts = [guard.judge(loss, norm) for loss, norm in zip(losses, norms, strict=True)]
    assert GO_BACK not in verdicts and verdicts.count(SKIP) <= 1


def test_states_are_good_unless_their_scores_say_otherwise() -> None:
    assert objection(0.74, 0.76, None) is None is objection(0.80, 0.85, 0.74)
    for scores in ((math.nan, 0.7, None), (0.7, math.nan, None), (0.74, 37.0, 0.74), (0.82, 0.85, 0.74)):
        assert objection(*scores) is not None, scores


# ------------------------------------------------------------------------------------------------------ runs diverge


def blow_up(trainer: Trainer, steps: set[int]) -> None:
    """Break the trainer's weights for good after these of its steps, so that each later loss is finite and huge."""
    train_step = trainer._train_step

    def then_broken(*arguments):  # type: ignore[no-untyped-def]
        reported = train_step(*arguments)
        if trainer.step in steps:
            with torch.no_grad():
                cast(torch.nn.Conv2d, trainer.model.g_s[-1]).weight.mul_(1e3)
        return reported

    trainer._train_step = then_broken  # type: ignore[method-assign]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard with a shorter memory, for short runs."""
    for name, value in {"ENOUGH": 5, "MANY": 3, "RECENT": 6}.items():
        monkeypatch.setattr(guarding, name, value)


@pytest.mark.usefixtures("hasty", "one_thread")
def test_a_run_that_diverges_recovers_automatically(pictures: PackedPictures, tmp_path: Path) -> None:
    said: list[str] = []
    trainer = Trainer(SMALL, pictures, tmp_path, STEADY, say=said.append)
    blow_up(trainer, {12})
    trainer.run()
    assert said == [
        "step 16: the loss or the gradient stays an outlier; going back to the good state of step 0, with other samples"
    ]
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert [row["loss"] > 50 for row in rows] == [13 <= row["step"] - 1 < 16 for row in rows]
    assert rows[-1]["skipped"] == trainer.skipped == 3 and rows[-1]["went_back"] == trainer.went_back == 1
    written = load_checkpoint(str(tmp_path / "weights.safetensors"))
    assert written.training["steps"] == 24 and written.training["score"] == trainer.score
    assert trainer.score is not None and trainer.score < rows[0]["score"], "it learns nothing after it went back"
    resumed = Trainer(SMALL, pictures, tmp_path, STEADY)
    assert (resumed.step, resumed.skipped, resumed.went_back) == (24, 3, 1)


@pytest.mark.usefixtures("hasty", "one_thread")
def test_a_run_goes_back_to_what_it_was_when_the_state_was_saved(pictures: PackedPictures, tmp_path: Path) -> None:
    trainer = Trainer(SMALL, pictures, tmp_path, dataclasses.replace(STEADY, steps=2))
    trainer.run()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    averages, updates = {name: value.clone() for name, value in trainer.average.values.items()}, trainer.average.updates
    for parameter in trainer.model.parameters():
        parameter.data.mul_(2)
    trainer.average.update(list(trainer.model.parameters()))
    trainer._go_back("for a test")
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
    assert all(torch.equal(value, averages[name]) for name, value in trainer.average.values.items())
    assert trainer.average.updates == updates and trainer.step == 2


@pytest.mark.usefixtures("hasty", "one_thread")
@pytest.mark.parametrize("steps_later", [1, 2])
def test_a_stop_after_a_divergence_keeps_the_good_state(
    pictures: PackedPictures, tmp_path: Path, steps_later: int
) -> None:
    """One step later the weights are broken, which is not detected yet; the averages are sound. Two steps later a loss shows it."""
    said: list[str] = []
    Trainer(SMALL, pictures, tmp_path, dataclasses.replace(STEADY, steps=10)).run()
    good = [(tmp_path / name).read_bytes() for name in ("state.pt", "weights.safetensors")]
    settings = STEADY
    trainer = Trainer(SMALL, pictures, tmp_path, settings, say=said.append)
    blow_up(trainer, {17})
    trainer.run(asked_to_stop=lambda: trainer.step == 17 + steps_later)
    assert [(tmp_path / name).read_bytes() for name in ("state.pt", "weights.safetensors")] == good
    assert len(said) == 1 and "not saved, the last good state is that of step 10" in said[0]
    resumed = Trainer(SMALL, pictures, tmp_path, settings)
    resumed.run()
    assert resumed.step == 24 and resumed.went_back == 0


@pytest.mark.usefixtures("hasty", "one_thread")
def test_a_save_that_finds_broken_weights_sends_the_run_back(pictures: PackedPictures, tmp_path: Path) -> None:
    said: list[str] = []
    settings = dataclasses.replace(STEADY, steps=11, save_minutes=0)
    trainer = Trainer(SMALL, pictures, tmp_path, settings, say=said.append)
    blow_up(trainer, {2})
    trainer.run()
    assert len(said) == 1 and said[0].startswith("step 3: the weights score") and "the good state of step 2" in said[0]
    assert trainer.step == 11 and trainer.went_back == 1 and trainer.skipped == 0


@pytest.mark.usefixtures("hasty", "one_thread")
def test_a_run_that_diverges_again_and_again_tries_the_state_before_and_ends(
    pictures: PackedPictures, tmp_path: Path
) -> None:
    said: list[str] = []
    for steps in (6, 10):
        Trainer(SMALL, pictures, tmp_path, dataclasses.replace(STEADY, steps=steps)).run()
    settings = dataclasses.replace(STEADY, steps=100)
    trainer = Trainer(SMALL, pictures, tmp_path, settings, say=said.append)
    blow_up(trainer, set(range(16, 100)))
    with pytest.raises(HpcmError, match="again and again .* lower --learning-rate") as error:
        trainer.run()
    assert str(tmp_path) in str(error.value)
    states = [line.split("good state of ")[1] for line in said]
    assert states == ["step 10, with other samples"] * TRIES + ["step 6, with other samples"] * TRIES
    assert Trainer(SMALL, pictures, tmp_path, settings).step == 10, "the good states are still there"


@pytest.mark.usefixtures("one_thread")
def test_a_run_does_not_begin_with_weights_that_are_broken(pictures: PackedPictures, tmp_path: Path) -> None:
    """What an earlier version may have saved: broken weights with sound averages."""
    Trainer(SMALL, pictures, tmp_path, QUICK).run()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    last = [name for name in state["model"] if name.startswith("g_s.") and name.endswith(".weight")][-1]
    state["model"][last] *= 1e3
    torch.save(state, tmp_path / "state.pt")
    before = (tmp_path / "state.before.pt").read_bytes()
    (tmp_path / "state.before.pt").unlink()
    with pytest.raises(HpcmError, match="begins with diverged weights: the weights score .* --from"):
        Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, steps=9)).run()
    (tmp_path / "state.before.pt").write_bytes(before)
    said: list[str] = []
    trainer = Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, steps=9), say=said.append)
    trainer.run()
    assert "the newest state has diverged (the weights score" in said[0] and trainer.step == 9


@pytest.mark.usefixtures("one_thread")
def test_a_state_that_lacks_something_is_damaged(pictures: PackedPictures, tmp_path: Path) -> None:
    torch.save({"step": 5}, tmp_path / "state.pt")
    with pytest.raises(FileError, match="damaged"):
        Trainer(SMALL, pictures, tmp_path, QUICK)


@pytest.mark.usefixtures("one_thread")
def test_an_outlier_in_the_last_step_does_not_cost_the_run_its_weights(
    pictures: PackedPictures, tmp_path: Path
) -> None:
    trainer = Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, steps=6))
    draw = trainer._draw

    def with_a_hole(progress: float) -> Batch:
        batch = draw(progress)
        return dataclasses.replace(batch, position=batch.position * math.nan) if trainer.step == 5 else batch

    trainer._draw = with_a_hole  # type: ignore[method-assign]
    trainer.run()
    assert trainer.skipped == 1 and trainer.states.step == 6
    assert load_checkpoint(str(tmp_path / "weights.safetensors")).training["steps"] == 6


# ------------------------------------------------------------------------------------------------- states and scores


@pytest.mark.usefixtures("one_thread")
def test_the_two_last_good_states_are_kept_and_the_older_one_replaces_a_damaged_one(
    pictures: PackedPictures, tmp_path: Path
) -> None:
    newest, before = tmp_path / "state.pt", tmp_path / "state.before.pt"
    for steps in (2, 4, 6):
        Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, steps=steps)).run()
    assert [torch.load(path, weights_only=True)["step"] for path in (newest, before)] == [6, 4]
    newest.write_bytes(newest.read_bytes()[:-1000])
    said: list[str] = []
    resumed = Trainer(SMALL, pictures, tmp_path, QUICK, say=said.append)
    assert resumed.step == 4
    assert said == [f"{newest}: damaged; taking state.before.pt"]
    resumed.run()
    assert [torch.load(path, weights_only=True)["step"] for path in (newest, before)] == [6, 4], "damage was kept"
    newest.unlink()
    assert Trainer(SMALL, pictures, tmp_path, QUICK).step == 4
    before.write_bytes(b"not a state")
    with pytest.raises(FileError, match="damaged"):
        Trainer(SMALL, pictures, tmp_path, QUICK)


@pytest.mark.usefixtures("one_thread")
def test_states_without_counts_and_scores_are_continued(pictures: PackedPictures, tmp_path: Path) -> None:
    Trainer(SMALL, pictures, tmp_path, dataclasses.replace(QUICK, steps=3)).run()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["went_back"], state["score"]
    torch.save(state, tmp_path / "state.pt")
    resumed = Trainer(SMALL, pictures, tmp_path, QUICK)
    resumed.run()
    assert resumed.step == 6 and resumed.went_back == 0


@pytest.mark.usefixtures("one_thread")
def test_weights_are_scored_on_the_validation_pictures(pictures: PackedPictures, tmp_path: Path) -> None:
    torch.manual_seed(0)
    held_out = torch.rand(3, 3, 64, 64)
    trainer = Trainer(SMALL, pictures, tmp_path, QUICK, validation=held_out)
    trainer.run()
    model = load_checkpoint(str(tmp_path / "weights.safetensors")).build_model()
    assert trainer.score == pytest.approx(score(model, held_out).value, rel=1e-5)
    assert rows_of(tmp_path)[0]["score"] != trainer.score, "the rows tell the score of the last good state"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_pictures_of_a_score(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = torch.rand(2, 3, 64, 64)
    model = HPCM(SMALL).eval()
    reported: list[torch.Tensor] = []
    for rank in range(world):
        process = Processes(torch.device("cpu"))
        process.rank, process.world = rank, world

        def noted(values: torch.Tensor) -> torch.Tensor:
            reported.append(values)
            return values

        monkeypatch.setattr(process, "mean", noted)
        shared_score(SMALL, model.state_dict(), held_out, process)
    assert float(sum(reported)) / len(held_out) == pytest.approx(score(model, held_out).value, rel=1e-5)


BLOWN_UP = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hpcm_codec.training import guard
guard.ENOUGH, guard.MANY, guard.RECENT = 5, 3, 6
from test_training_guard import STEADY, SMALL, PackedPictures, Trainer, blow_up
settings = dataclasses.replace(STEADY, steps=24)
trainer = Trainer(SMALL, PackedPictures(Path(sys.argv[2])), Path(sys.argv[3]), settings)
blow_up(trainer, {9} if trainer.processes.rank == 0 else set())
trainer.run()
print(trainer.skipped, trainer.went_back, trainer.score, float(sum(p.double().sum() for p in trainer.model.parameters())))
"""


@pytest.mark.slow
def test_processes_of_which_one_breaks_go_back_together(
    pictures: PackedPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    monkeypatch.setattr("test_training_runs.WORKER", BLOWN_UP)
    first, second = trained_in(2, 2, pictures, tmp_path)
    assert first == second and first.split()[:2] == [b"3", b"1"]
    assert [row["went_back"] for row in rows_of(tmp_path)][-1] == 1
