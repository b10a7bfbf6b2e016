"""The fused operators as other processors would compute them: without the matrix unit, with plain vectors, with older instructions."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from conftest import some_in_every_run
from hpcm_codec.model.blocks import ResidualBlock
from hpcm_codec.model.rwkv import RWKVBlock
from hpcm_codec.ops import build, training
from test_fused import bfloat16, check, rounded

PROCESSORS = {
    "no matrix unit": ("-march=native", "-DHPCM_NO_AMX"),
    "plain vectors": ("-march=native", "-DHPCM_PLAIN"),
    "AVX2": ("-march=haswell",),
    "any x86-64": ("-march=x86-64",),
}

pytestmark = pytest.mark.skipif(
    build.find_compiler("training") is None or platform.machine() not in ("x86_64", "AMD64"),
    reason="no C++ compiler here, or not for these processors",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operators")


# the other two are those of AVX2 in other sizes
IN_EVERY_RUN = ("no matrix unit", "AVX2")


@pytest.mark.parametrize("processor", some_in_every_run(PROCESSORS, IN_EVERY_RUN))
def test_other_processors_compute_the_same(
    processor: str, cache: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    flags = [flag for flag in build.FLAGS["training"] if flag != "-march=native"]
    monkeypatch.setitem(build.FLAGS, "training", (*flags, *PROCESSORS[processor]))
    monkeypatch.setenv("HPCM_CACHE", str(cache))
    monkeypatch.setattr(build, "_state", build._State())
    training._function.cache_clear()
    torch.manual_seed(1)
    try:
        if processor == "AVX2" and "avx2" not in build.processor():
            pytest.skip("this processor has no AVX2")
        block, mixing = rounded(ResidualBlock(48, factor_levels=2)), RWKVBlock(32, hidden_rate=2)
        rate = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
        check(lambda x: block(x, rate), (bfloat16(2, 48, 9, 7),), list(block.parameters()))
        check(mixing, (bfloat16(2, 32, 6, 5),), list(mixing.parameters()), least=0.04)  # small sums of large terms
    finally:
        training._function.cache_clear()  # the functions of this library must not outlive it
