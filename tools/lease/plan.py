"""The settings of a lease, real or rehearsed, and the training settings that `choose` selected; uploaded as JSON with every call."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcm_codec.errors import FileError

LEASE = Path(".lease")  # at the root of the checkout; the same name there as here
PLAN = Path("plan") / "plan.json"

RATE = 1e-3  # with 32 crops and SOAP; 1.7e-3 diverged five times in 13,700 steps, this once in 17,500; the guard recovered each time


@dataclass(frozen=True)
class Plan:
    """device:          where everything runs there: "cuda"; "cpu" in a rehearsal.
    model:           preset, or a file of JSON in .lease/plan.
    edge, batches:   crops, and how many in a step are tried.
    optimisers:      the first is the usual one; others are taken if a step costs no more than `dearest_step` times as much.
    basis_refresh:   steps between two changes of SOAP's eigenbases.
    compile:         whether --compile is tried.
    cuda_graph:      whether steps are replayed as a CUDA graph where that works.
    learning_rate:   the peak, whatever the batch.
    stretches:       calls that train, of `stretch_seconds` each from the command's start to its end.
    most_training:   seconds of a stretch that may be training; in a rehearsal all other times are generous.
    start_seconds:   until the first step; end_seconds: for the weights' way out after the last one.
    decay_start:     share of the training time of all stretches after which the rate falls.
    blown_up:        a row's loss so many times the usual one is the end of a run.
    doctor:          options of `hpcm doctor`.
    trial_seconds:   how long steps are measured; trial_start_seconds, compile_seconds: how long the first ones may take, without and
                     with torch.compile.
    limit_mib:       what may travel with a call, the working tree included (the machine's limit is 64).
    tests:           pytest's arguments; operator, lengths: what of Bi-WKV4 is timed.
    parts:           SHA-256 of each part of the pictures, by its folder's name.
    """

    device: str = "cuda"
    model: str = "phase1-lite"
    edge: int = 256
    batches: tuple[int, ...] = (32,)
    optimisers: tuple[str, ...] = ("soap",)
    basis_refresh: int = 25
    dearest_step: float = 1.2
    compile: bool = True
    cuda_graph: bool = True
    learning_rate: float = RATE
    warmup_steps: int = 200
    patch_rate_factor: float = 0.1
    transform_rate_factor: float = 0.3
    smallest_scale: float = 0.6
    ema: float = 0.999
    decay_start: float = 0.999
    loaders: int = 12
    log_every: int = 50
    save_minutes: float = 1.5
    blown_up: float = 20.0
    stretches: int = 2
    stretch_seconds: float = 570.0
    most_training: float = 600.0
    start_seconds: float = 25.0
    end_seconds: float = 20.0
    choose_seconds: float = 240.0
    doctor: tuple[str, ...] = ("--build", "--selftest")
    trial_seconds: float = 6.0
    trial_start_seconds: float = 45.0
    compile_seconds: float = 120.0
    check_seconds: float = 150.0
    piece_mib: float = 16.0
    limit_mib: float = 62.0
    least_parts: int = 1
    tests: tuple[str, ...] = (
        "tests/test_biwkv4.py",
        "tests/test_handover.py",
        "tests/test_graphs.py",
        "tests/test_api.py",
        "tests/test_captured.py",
        "tests/test_prefetch.py",
        "tests/test_soap.py",
        "tests/test_masked_estimator.py",
        "-k",
        "cuda or gpu",
    )
    check_pictures: tuple[str, ...] = ("kodim04.png", "kodim15.png", "kodim23.png")
    check_qualities: tuple[float, ...] = (15.0, 50.0, 85.0)
    bench: tuple[str, ...] = ("--runs", "5")
    operator: str = "cuda"
    operator_sizes: tuple[tuple[int, int, int], ...] = (
        (1, 1536, 192),
        (64, 256, 192),
        (1, 32400, 192),
        (1, 32400, 640),
    )
    parts: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def training_seconds(self) -> float:
        """What a stretch trains."""
        return min(self.most_training, self.stretch_seconds - self.start_seconds - self.end_seconds)

    def write(self, folder: Path) -> None:
        (folder / PLAN).parent.mkdir(parents=True, exist_ok=True)
        (folder / PLAN).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Raises FileError where there is no plan."""
        try:
            values: dict[str, Any] = json.loads((folder / PLAN).read_text())
        except (OSError, ValueError) as error:
            advice = "here: `tools/gpu_lease.py prepare`; on the GPU's machine: carry .lease/plan"
            raise FileError("no plan of a lease", file=folder / PLAN, advice=advice) from error
        lists = {name: _tuples(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# The same programs with seconds instead of minutes. Longer limits are for a busy machine.
REHEARSAL = Plan(
    device="cpu",
    model=".lease/plan/tiny.json",
    edge=64,
    batches=(2,),
    optimisers=("adamw",),
    compile=False,
    cuda_graph=False,
    learning_rate=8e-4,
    decay_start=0.8,
    warmup_steps=2,
    smallest_scale=0.9,
    loaders=1,
    log_every=1,
    save_minutes=0.01,
    stretch_seconds=300.0,
    most_training=3.0,
    start_seconds=100.0,
    end_seconds=60.0,
    choose_seconds=300.0,
    doctor=(),
    trial_seconds=0.3,
    trial_start_seconds=100.0,
    blown_up=1000.0,
    check_seconds=300.0,
    piece_mib=1.5,
    least_parts=2,
    tests=("tests/test_prefetch.py", "-k", "travel"),
    check_pictures=("a.png",),
    check_qualities=(50.0,),
    bench=(),
    operator="torch",
    operator_sizes=((1, 64, 8),),
)


@dataclass(frozen=True)
class Choice:
    """What a lease trains with."""

    batch: int
    optimiser: str = "adamw"
    compile: bool = False
    cuda_graph: bool = False

    def __str__(self) -> str:
        return f"{self.batch} crops, {self.optimiser}{', compiled' if self.compile else ''}{', CUDA graph' if self.cuda_graph else ''}"

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def read(cls, path: Path) -> Choice:
        """Raises FileError for a damaged file."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise FileError("not a choice of settings", file=path, advice="give the call `choose` again") from error
