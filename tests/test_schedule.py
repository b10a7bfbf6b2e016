"""The coding schedule: every latent exactly once, in the published order, by views alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcm_codec.model import schedule
from hpcm_codec.model.schedule import Lattice

CHANNELS = 16


def planes(height: int, width: int) -> dict[str, torch.Tensor]:
    return {
        "s1": torch.zeros(CHANNELS, height // 4, width // 4),
        "s2": torch.zeros(CHANNELS, height // 2, width // 2),
        "s3": torch.zeros(CHANNELS, height, width),
    }


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_every_latent_is_coded_exactly_once(rows: int, columns: int) -> None:
    counts = planes(4 * rows, 4 * columns)
    s1, s2, s3 = schedule.scales(CHANNELS)
    for scale in (s1, s2, s3):
        for step in scale.steps:
            ones = torch.ones_like(step.take(counts[scale.name]))
            counts[scale.name] += step.place(ones, torch.zeros_like(counts[scale.name]))
        if scale.inside is not None:
            finer = "s2" if scale is s1 else "s3"
            counts[finer] = scale.inside.place(counts[scale.name], counts[finer])
    assert torch.equal(counts["s3"], torch.ones_like(counts["s3"]))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), batch=st.integers(1, 3))
def test_taking_what_was_placed_gives_it_back(rows: int, columns: int, batch: int) -> None:
    for scale, factor in zip(schedule.scales(CHANNELS), (1, 2, 4), strict=True):
        base = torch.zeros(batch, CHANNELS, factor * rows, factor * columns)
        for step in scale.steps:
            packed = torch.randn_like(step.take(base))
            assert packed.shape == (batch, step.count(factor * rows, factor * columns))
            assert torch.equal(step.take(step.place(packed, base)), packed)


def test_splitting_and_merging_are_inverse() -> None:
    latents = torch.randn(2, CHANNELS, 8, 12)
    planes = schedule.split(latents)
    assert [tuple(plane.shape[-2:]) for plane in planes.values()] == [(2, 3), (4, 6), (8, 12)]
    assert torch.equal(schedule.merge({**planes, "s3": latents.clone()}), latents)
    marked = schedule.merge({name: torch.full_like(plane, i) for i, (name, plane) in enumerate(planes.items())})
    sixteenth = latents.numel() // 16
    assert [int((marked == i).sum()) for i in range(3)] == [sixteenth, 3 * sixteenth, 12 * sixteenth]


def test_there_are_eleven_steps_in_three_scales() -> None:
    assert [len(scale.steps) for scale in schedule.scales(320)] == [2, 3, 6]


def test_full_resolution_steps_use_the_published_patterns() -> None:
    last = schedule.scales(CHANNELS)[2].steps[-1]
    positions = {(piece.first // 2, piece.row, piece.column) for piece in last.pieces}
    expected = {
        (group, *position) for group, digit in enumerate("71356024") for position in schedule.PATTERNS[int(digit)]
    }
    assert positions == expected


@pytest.mark.parametrize("number", range(3))
def test_taking_and_placing_have_the_right_gradients(number: int) -> None:
    scale = schedule.scales(8)[number]
    plane = torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    lattices: list[Lattice] = [scale.steps[0], *([scale.inside] if scale.inside else [])]
    for lattice in lattices:
        packed = torch.randn_like(lattice.take(plane)).requires_grad_()
        assert torch.autograd.gradcheck(lattice.take, (plane,))
        assert torch.autograd.gradcheck(lattice.place, (packed, plane))


def test_a_step_shares_memory_with_the_plane_and_needs_no_index() -> None:
    plane = torch.zeros(8, 8, 8)
    for piece in schedule.scales(8)[2].steps[0].pieces:
        assert piece.view(plane).untyped_storage().data_ptr() == plane.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "shape", [(2, CHANNELS, 8, 12), (1, CHANNELS, 4, 4), (3, 2, CHANNELS, 4, 8), (2, CHANNELS, 4, 4)]
)
@pytest.mark.parametrize("order", ["rows", "channels", "gaps"])
def test_moving_by_index_as_on_a_gpu_moves_the_same(
    shape: tuple[int, ...], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plane() -> torch.Tensor:
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        if order == "channels":
            x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
        return torch.cat((x, x), dim=1)[:, : shape[1]] if order == "gaps" else x

    results = []
    for by_index in (False, True):
        monkeypatch.setattr(schedule, "_by_index", lambda x, by_index=by_index: by_index and x.ndim > 3)
        found: list[torch.Tensor] = []
        for scale in schedule.scales(CHANNELS):
            lattices = scale.steps if len(shape) == 4 else ()
            for lattice in (*lattices, *((scale.inside,) if scale.inside else ())):
                base = plane().requires_grad_()
                packed = lattice.take(base)
                placed = lattice.place(packed.double() * 2, base)
                (gradient,) = torch.autograd.grad(
                    (placed * plane() * torch.arange(placed.numel()).view(placed.shape)).sum(), base
                )
                found += [packed, placed, gradient]
        results.append(found)
    assert len(results[0]) > 5
    assert all(torch.equal(plain, indexed) for plain, indexed in zip(*results, strict=True))
