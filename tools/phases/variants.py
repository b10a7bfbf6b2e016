"""The context models that are compared. All are settings of the default model; transforms, hyperprior and gains are the same in all."""

from __future__ import annotations

from dataclasses import replace

from hpcm_codec.model.config import CellConfig, ModelConfig, preset

_DEFAULT = preset("phase1-lite")
_S1, _S2, _S3 = _DEFAULT.cells
# As wide as the RWKV cell at s3, as the published cell is to Phase 1's.
_ATTENTION = CellConfig(window=8, width=_S3.width, heads=8, residual=True)
# So narrow that it costs what the RWKV cell costs: 104.1 kMAC/pixel in all, against 104.3 (test_compare_phases.py).
_NARROW = replace(_ATTENTION, width=104)

VARIANTS: dict[str, ModelConfig] = {
    "baseline-lite": replace(_DEFAULT, name="baseline-lite", cells=(_S1, _S2, _ATTENTION)),
    "attention-lite": replace(_DEFAULT, name="attention-lite", cells=(_S1, _S2, _NARROW)),
    "phase1-lite": _DEFAULT,
    "phase2-lite": preset("phase2-lite"),
    "phase3-lite": preset("phase3-lite"),
    "phase4-lite": preset("phase4-lite"),
}
REFERENCE = "baseline-lite"
