"""What several test modules need: the data beside the checkout, small pictures, and a codec that is loaded once."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hpcm_codec.system.devices import has_cuda

if TYPE_CHECKING:
    from torch import Tensor

    from hpcm_codec.codec import Codec
    from hpcm_codec.engines.torch_engine import TorchEngine
    from hpcm_codec.model.hpcm import HPCM
    from hpcm_codec.training.data import PackedPictures

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# waiting threads that spin make two busy processes on two cores several times slower than they are
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a shell's background: programs that tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HPCM_MODELS"] = str(ROOT / "no-such-folder")  # the tester's own checkpoints have no part in this


needs_cuda = pytest.mark.skipif(not has_cuda(), reason="there is no GPU")


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """The same number of threads in every test: sums in another order are other sums."""
    import torch

    torch.set_num_threads(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of two processes that take a file each, none is then left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def some_in_every_run(names: Iterable[str], chosen: Collection[str]) -> list[Any]:
    """Parameters of a test, of which those that are not chosen are for exhaustive runs."""
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


def load_tool(root: Path, name: str) -> ModuleType:
    """A program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, root / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process score small crops before they save, which otherwise takes most of a small model's time."""
    from hpcm_codec.training import loop

    monkeypatch.setattr(loop, "EDGE", 64)


@pytest.fixture
def one_thread() -> None:
    """One torch thread for a test: on cores that others use too, waiting for a second one takes most of the time."""
    import torch

    torch.set_num_threads(1)


def pytest_runtest_teardown() -> None:
    """Undo the number of threads that a test has set."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(2)


@pytest.fixture(scope="session")
def root() -> Path:
    """The source checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared, with the pictures and reference data that are too large or not ours to commit."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not there")
    return SHARED


def case(name: str) -> Path:
    """A small picture of ../shared/data/cases that was once handled wrongly; skips the test where it is not there."""
    path = SHARED / "data" / "cases" / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="session")
def kodak(shared: Path) -> Path:
    """The folder of the 24 Kodak pictures."""
    folder = shared / "data" / "kodak"
    if not (folder / "kodim24.png").is_file():
        pytest.skip("../shared/data/kodak is not there")
    return folder


@pytest.fixture(scope="session")
def reference(shared: Path) -> Path:
    """The folder with outputs of the published networks."""
    folder = shared / "reference"
    if not (folder / "hpcm_base_golden.npz").is_file():
        pytest.skip("../shared/reference is not there")
    return folder


@pytest.fixture(scope="session")
def codec() -> Codec:
    """The default model on the CPU."""
    from hpcm_codec.codec import load_codec

    return load_codec(device="cpu")


def small_photograph(width: int = 96, height: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth picture with an edge and some grain, H×W×3."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [120 + 70 * np.sin(rows / (9 + c) + seed) + 40 * (columns > width / 2) for c in range(3)]
    return (np.stack(planes, -1) + random.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> PackedPictures:
    """Four packed pictures of 130 pixels and more, one of them grey."""
    from hpcm_codec.training.data import PackedPictures, pack_pictures

    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(3):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 11, 3), dtype=np.uint8))
        coarse.resize((200 + number, 150), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    Image.new("L", (140, 130), 77).save(folder / "grey.png")
    Image.new("RGB", (20, 20)).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    assert pack_pictures(folder, folder / "all.pack") == 4
    return PackedPictures(folder / "all.pack")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """photo.png, 96×64, in a folder of its own."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(small_photograph()).save(folder / "photo.png")
    return folder / "photo.png"


@pytest.fixture(scope="session")
def stream(codec: Codec) -> bytes:
    """The bytes of a 96×64 picture's .hpcm file."""
    from hpcm_codec.images import Picture

    return codec.encode(Picture(small_photograph()), 40)


@pytest.fixture
def compressed(tmp_path: Path, stream: bytes) -> Path:
    """photo.hpcm, of a 96×64 picture."""
    path = tmp_path / "photo.hpcm"
    path.write_bytes(stream)
    return path


@pytest.fixture
def no_leftovers(tmp_path: Path) -> Iterator[None]:
    """After the test no temporary file of ours is left below tmp_path."""
    yield
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".partial")]


def torch_engine(codec: Codec, profile: str | None = None) -> TorchEngine:
    """The codec's engine of a profile (None: the one that it encodes with), which in these tests computes with torch."""
    from hpcm_codec.engines.torch_engine import TorchEngine

    engine = codec.engine if profile is None else codec.engines[profile]
    assert isinstance(engine, TorchEngine)
    return engine


@contextmanager
def few_extremes() -> Iterator[None]:
    """Calibration with few and small pictures of extremes."""
    from hpcm_codec.engines.exact import export

    few = [extreme[..., :64, :64] for extreme in export.extremes()[::8]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "extremes", lambda: few)
        yield


def photographs_to_calibrate(count: int, width: int = 128, height: int = 64) -> list[Tensor]:
    """Small pictures that find the units of an exact profile: 1×3×height×width each, in [0, 1]."""
    import torch

    pixels = (small_photograph(width, height, seed) for seed in range(count))
    return [torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 for picture in pixels]


def exported_exactly(model: HPCM, folder: Path) -> Path:
    """The path of a checkpoint of a model with an exact profile, calibrated with a few small pictures."""
    from hpcm_codec.engines.exporting import export_checkpoint
    from hpcm_codec.weights.checkpoints import save_checkpoint

    save_checkpoint(folder / "float.safetensors", model.config, dict(model.state_dict()), {})
    pictures = photographs_to_calibrate(3)
    with few_extremes():
        export_checkpoint(str(folder / "float.safetensors"), folder / "exact.safetensors", calibration=pictures)
    return folder / "exact.safetensors"


def digests_by_threads_and_operators(model: str, picture: str, folder: Path) -> set[str]:
    """SHA-256 of a picture's bytes and of its decoded pixels at quality 70, with one thread, two, and the plain operators of torch.

    model, picture: paths, seen from the folder.
    """
    code = (
        "import sys, hashlib; from hpcm_codec.system.threads import set_threads; set_threads(int(sys.argv[1]));"
        "from hpcm_codec.codec import load_codec; from hpcm_codec.images import read_picture;"
        "codec = load_codec(sys.argv[2], 'cpu'); data = codec.encode(read_picture(sys.argv[3]), 70);"
        "print(hashlib.sha256(data).hexdigest(), hashlib.sha256(codec.decode(data).pixels.tobytes()).hexdigest())"
    )
    found = set()
    for threads, operators in (("1", "cpp"), ("2", "cpp"), ("1", "torch")):
        command = [sys.executable, "-c", code, threads, model, picture]
        environment = {**os.environ, "HPCM_OPS": operators}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    return found
