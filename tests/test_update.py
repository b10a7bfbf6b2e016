"""The update of weights: compiled and plain agree, both agree with torch.optim.AdamW, and nothing beside the pieces changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcm_codec.ops import build, update

LENGTHS = (1, 7, 63, 1000, 16384, 20011)
STEPS = 5
needs_compiler = pytest.mark.skipif(
    build.find_compiler("cpp") is None or build.find_ninja() is None, reason="no C++ compiler or no ninja"
)


def pieces(fill: str, seed: int = 0) -> list[Tensor]:
    """Tensors of LENGTHS inside memory that is NaN everywhere else, at odd offsets."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in LENGTHS:
        memory = torch.full((length + 6,), torch.nan)
        inside = memory[3 : 3 + length]
        inside.copy_(torch.randn(length, generator=generator) if fill == "random" else torch.zeros(length))
        found.append(inside)
    return found


def surroundings(group: list[Tensor]) -> list[Tensor]:
    whole = [torch.as_strided(x, (x.shape[0] + 6,), (1,), 0) for x in group]
    return [torch.cat((x[:3], x[-3:])) for x in whole]


def weights() -> update.Weights:
    return update.Weights(pieces("random", 1), pieces("random", 1), pieces("zeros"), pieces("zeros"))


def rates(steps: int) -> update.Rates:
    count = len(LENGTHS)
    return update.Rates(np.linspace(1e-3, 2e-3, count), np.linspace(0, 0.3, count), np.full(count, float(steps)))


def gradients(processes: int, step: int) -> list[list[Tensor]]:
    return [pieces("random", 100 * process + step) for process in range(processes)]


@needs_compiler
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_norm_is_that_of_the_summed_gradients(processes: int) -> None:
    assert update.compiled()
    given = gradients(processes, 0)
    summed = torch.cat([sum(piece[1:], start=piece[0]) for piece in zip(*given, strict=True)])
    expected = float(summed.double().square().sum())
    assert update.squared_norm(given) == pytest.approx(expected, rel=1e-9)
    assert update.squared_norm_plain(given) == pytest.approx(expected, rel=1e-9)


@needs_compiler
def test_the_norm_does_not_depend_on_the_number_of_threads() -> None:
    given, found = gradients(2, 0), set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(update.squared_norm(given))
    assert len(found) == 1


@needs_compiler
@pytest.mark.parametrize("average_part", [0.002, 0.8, 1.0])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_compiled_and_plain_give_the_same_weights(processes: int, average_part: float) -> None:
    fast, plain = weights(), weights()
    for step in range(1, STEPS + 1):
        given = gradients(processes, step)
        options = update.AdamW(scale=0.7 / processes, average_part=average_part)
        update.adamw(fast, given, rates(step), options)
        update.adamw_plain(plain, given, rates(step), options)
    for name in ("parameters", "averages", "means", "squares"):
        for got, expected in zip(getattr(fast, name), getattr(plain, name), strict=True):
            assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6), name
        assert all(torch.isnan(x).all() for x in surroundings(getattr(fast, name))), "written beside a piece"


@pytest.mark.parametrize("function", [pytest.param(update.adamw, marks=needs_compiler), update.adamw_plain])
def test_the_step_is_that_of_torchs_adamw(function: object) -> None:
    assert callable(function)
    ours = weights()
    theirs = [torch.nn.Parameter(x.clone()) for x in ours.parameters]
    table = rates(1)
    groups = [
        {"params": [p], "lr": lr, "weight_decay": decay}
        for p, lr, decay in zip(theirs, table.rate, table.decay, strict=True)
    ]
    optimiser = torch.optim.AdamW(groups)
    for step in range(1, STEPS + 1):
        given = gradients(2, step)
        for parameter, first, second in zip(theirs, *given, strict=True):
            parameter.grad = (first + second) / 2
        optimiser.step()
        function(ours, given, rates(step), update.AdamW(scale=0.5))
    for index, parameter in enumerate(theirs):
        assert torch.allclose(ours.parameters[index], parameter, rtol=1e-6, atol=1e-7)
        state = optimiser.state[parameter]
        assert torch.allclose(ours.means[index], state["exp_avg"], rtol=1e-6, atol=1e-7)
        assert torch.allclose(ours.squares[index], state["exp_avg_sq"], rtol=1e-6, atol=1e-7)
        assert torch.equal(ours.averages[index], ours.parameters[index])


@needs_compiler
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (torch.zeros(8, dtype=torch.float64), TypeError),
        (torch.zeros(16)[::2], ValueError),
        (torch.zeros(9), ValueError),
    ],
)
def test_memory_that_the_compiled_functions_cannot_read_is_refused(wrong: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        update.squared_norm([[torch.zeros(8)], [wrong]])


def test_no_pieces_are_no_work() -> None:
    nothing = np.zeros(0)
    assert update.squared_norm([[], []]) == 0
    update.adamw(update.Weights([], [], [], []), [[], []], update.Rates(nothing, nothing, nothing), update.AdamW())
