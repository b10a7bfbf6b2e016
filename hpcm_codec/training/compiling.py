"""torch.compile for training: the blocks one by one, not the network as a whole.

Blocks of one kind and size share one compilation, which takes seconds; the whole network takes many minutes and gives little more.
"""

from __future__ import annotations

from hpcm_codec.model.blocks import ResidualBlock
from hpcm_codec.model.cells import CrossAttentionCell, RWKVFusion
from hpcm_codec.model.hpcm import HPCM, MaskedOperations
from hpcm_codec.model.priors import PriorRWKVBlock, StepAdaptor
from hpcm_codec.model.transforms import PatchesOut

COMPILED = (ResidualBlock, StepAdaptor, RWKVFusion, PriorRWKVBlock, CrossAttentionCell, PatchesOut)
SIZES = 64  # compilations of one piece of code before torch gives up on it; each kind of block has a few sizes


def compile_blocks(model: HPCM) -> None:
    """Let the blocks and the rates of a model run compiled from their first use on."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(SIZES, torch._dynamo.config.recompile_limit)
    for module in model.modules():
        if isinstance(module, COMPILED):
            module.forward = torch.compile(module.forward, dynamic=False)  # type: ignore[method-assign, assignment]
    step, total, rate = (torch.compile(operation, dynamic=False) for operation in model.masked_operations)
    model.masked_operations = MaskedOperations(step, total, rate)  # type: ignore[arg-type]
    model.round_and_rate = torch.compile(model.round_and_rate, dynamic=False)
