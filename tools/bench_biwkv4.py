"""Times the backends of Bi-WKV4 against T and prints a markdown table.

    python tools/bench_biwkv4.py [--lengths 64 256 …] [--channels 192 640] [--batch 1] [--threads 1] [--seconds 1.0]

Each cell is measured in a process of its own, so that its peak memory is its own: the rise of the process's largest
resident size (CPU) or of torch's allocator (CUDA) over what it was with the arguments in place. A time is the best of
as many runs as fit in --seconds, at least 2 after one to warm up: what the machine can do when nothing disturbs it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(backend: str, batch: int, length: int, channels: int, threads: int, seconds: float) -> dict[str, float]:
    """Milliseconds and peak MiB of one forward and one backward pass, float32. Runs in the child process."""
    import torch

    from hpcm_codec.ops import ensure_built, native, scan

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = "cuda" if backend == "cuda" else "cpu"
    if backend != "torch" and not ensure_built("cuda" if backend == "cuda" else "cpp"):
        return {}
    w, u = torch.randn(channels, device=device) / length, torch.randn(channels, device=device) / length
    k, v, grad_y = (torch.randn(batch, length, channels, device=device) for _ in range(3))
    out = torch.empty_like(k)
    passes: dict[str, dict[str, Callable[[], object]]] = {
        "torch": {
            "forward": lambda: scan.forward(w, u, k, v),
            "backward": lambda: scan.backward(w, u, k, v, grad_y),
        },
        "cpp": {
            "forward": lambda: native.cpp_forward(w, u, k, v),
            "backward": lambda: native.cpp_backward(w, u, k, v, grad_y),
        },
        "cuda": {
            "forward": lambda: native.cuda_forward(w, u, k, v, out),
            "backward": lambda: native.cuda_backward(w, u, k, v, grad_y),
        },
    }

    def peak() -> float:
        if device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

    def timed(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    result: dict[str, float] = {}
    before = peak()
    for name, run in passes[backend].items():
        timed(run)  # warm up
        result[f"{name} MiB"] = peak() - before
        times = [timed(run), timed(run)]
        while sum(times) < seconds and len(times) < 200:
            times.append(timed(run))
        result[f"{name} ms"] = 1e3 * min(times)
    return result


def child(backend: str, *numbers: float) -> dict[str, float]:
    """`measure` in a fresh process; {} when the backend is not there."""
    command = [sys.executable, __file__, "--cell", json.dumps([backend, *numbers])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 4096, 32400])
    parser.add_argument("--channels", type=int, nargs="+", default=[192, 640])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(*json.loads(options.cell))))
        return

    import torch

    machine = f"{processor_name()}, {os.cpu_count()} cores, {options.threads} thread(s) used"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: CUDA not measured"
    print(f"{machine}; {gpu}; torch {torch.__version__}; float32, B = {options.batch}. Milliseconds (peak MiB).\n")
    backends = ["torch", "cpp"] + (["cuda"] if torch.cuda.is_available() else [])
    titles = {"torch": "PyTorch", "cpp": "C++", "cuda": "CUDA"}
    print("| C | T |", *(f"{titles[b]} forward | {titles[b]} backward |" for b in ("torch", "cpp", "cuda")))
    print("|" + "---:|" * 8)
    for channels in options.channels:
        for length in options.lengths:
            cells = []
            for backend in ("torch", "cpp", "cuda"):
                numbers = (options.batch, length, channels, options.threads, options.seconds)
                found = child(backend, *numbers) if backend in backends else {}
                for name in ("forward", "backward"):
                    text = f"{found[f'{name} ms']:.2f} ({found[f'{name} MiB']:.0f})" if found else "not measured"
                    cells.append(text)
            print(f"| {channels} | {length} |", *(f"{cell} |" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
