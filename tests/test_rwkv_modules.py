"""The RWKV modules against the golden block and against their own definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcm_codec.model.cells import ContextCell, CrossAttentionCell, RWKVContextCell
from hpcm_codec.model.config import CellConfig
from hpcm_codec.model.rwkv import ChannelMix, OmniShift, RWKVBlock, SpatialMix

GOLDEN_NAMES = {
    "gamma1": "gamma1",
    "gamma2": "gamma2",
    "ln1": "norm1",
    "ln2": "norm2",
    "att": "spatial_mix",
    "ffn": "channel_mix",
}


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, np.ndarray]:
    with np.load(reference / "rwkv_block_golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def golden_block(golden: dict[str, np.ndarray]) -> RWKVBlock:
    block = RWKVBlock(48, hidden_rate=4).double()
    state = {}
    for name, value in golden.items():
        if name in ("x", "y"):
            continue
        first, _, rest = name.partition(".")
        ours = ".".join(filter(None, (GOLDEN_NAMES[first], rest.replace("omni_shift", "shift"))))
        state[ours] = torch.from_numpy(value)
    block.load_state_dict(state)
    return block


def test_block_reproduces_the_golden_output_folded(golden, golden_block) -> None:
    y = golden_block(torch.from_numpy(golden["x"]))
    assert (y - torch.from_numpy(golden["y"])).abs().max() < 1e-9


def test_block_reproduces_the_golden_output_in_training_form(golden, golden_block, monkeypatch) -> None:
    monkeypatch.setattr(OmniShift, "forward", OmniShift.branches)
    y = golden_block(torch.from_numpy(golden["x"]))
    assert (y - torch.from_numpy(golden["y"])).abs().max() < 1e-9


def test_folded_shift_has_the_gradients_of_its_branches() -> None:
    torch.manual_seed(0)
    shift = OmniShift(6).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    weights = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    gradients = []
    for form in (shift.forward, shift.branches):
        shift.zero_grad()
        (form(x) * weights).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in shift.parameters() if parameter.grad is not None])
    for folded, branched in zip(*gradients, strict=True):
        torch.testing.assert_close(folded, branched)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 4), (5, 7)])
def test_mixes_keep_the_shape_of_any_lattice(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 24, *shape)
    assert SpatialMix(24)(x).shape == x.shape
    assert ChannelMix(24, 2.5)(x).shape == x.shape


@pytest.mark.parametrize("kind", ["cross-attention", "rwkv"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (9, 13)])
def test_cells_take_any_lattice_and_any_inner_width(kind: str, size: tuple[int, int]) -> None:
    for width in (None, 16, 48):
        config = CellConfig(kind=kind, window=4, heads=4, width=width, hidden_rate=2)  # type: ignore[arg-type]
        cell = ContextCell(24, config, use_checkpoint=False)
        params, context = torch.randn(2, 24, *size), torch.randn(2, 24, *size)
        assert cell(params, context).shape == params.shape


def test_padding_of_a_window_is_never_attended_to() -> None:
    torch.manual_seed(0)
    cell = CrossAttentionCell(8, CellConfig(window=4, heads=2)).eval()
    params, context = torch.randn(1, 8, 6, 7), torch.randn(1, 8, 6, 7)
    whole = cell(params, context)
    # The last window column holds 2 rows and 3 columns of latents: alone, they must give the same.
    alone = cell(params[..., 4:, 4:], context[..., 4:, 4:])
    torch.testing.assert_close(whole[..., 4:, 4:], alone)


def test_windows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    cell = CrossAttentionCell(8, CellConfig(window=4, heads=2)).eval()
    params, context = torch.randn(1, 8, 8, 8), torch.randn(1, 8, 8, 8)
    changed = context.clone()
    changed[..., :4, :4] += 1
    difference = (cell(params, context) - cell(params, changed)).abs().amax(dim=(0, 1))
    assert difference[:4, :4].min() > 0
    assert difference[4:].max() == 0 and difference[:, 4:].max() == 0


def test_the_rwkv_cell_sees_the_whole_lattice() -> None:
    torch.manual_seed(0)
    cell = RWKVContextCell(8, CellConfig(kind="rwkv", hidden_rate=2)).double().eval()
    context = torch.randn(1, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    cell(torch.randn(1, 8, 6, 6, dtype=torch.float64), context)[..., 0, 0].sum().backward()
    assert context.grad is not None and context.grad.abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("kind", ["cross-attention", "rwkv"])
def test_activation_checkpointing_changes_no_gradient(kind: str) -> None:
    torch.manual_seed(0)
    cell = ContextCell(8, CellConfig(kind=kind, window=4, heads=2), use_checkpoint=False)  # type: ignore[arg-type]
    params, context = torch.randn(1, 8, 5, 5), torch.randn(1, 8, 5, 5)
    gradients = []
    for cell.use_checkpoint in (False, True):
        cell.zero_grad()
        cell(params, context).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in cell.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
