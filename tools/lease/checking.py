"""`check`: what can only be measured on a GPU.

Files of the CPU decode on the GPU, and the reverse; the time of a picture; the time of Bi-WKV4 against the memory's speed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from hpcm_codec.errors import HpcmError
from lease.choosing import keep_what_came
from lease.machine import Clock, home, hpcm, out, run_for, use_here
from lease.plan import Plan
from lease.staging import install_wheels

FORWARD_ARRAYS, BACKWARD_ARRAYS = 3, 5  # k, v → y; k, v, dy → dk, dv: each read or written once, B×T×C float32


def check(plan: Plan) -> None:
    """Run all parts. One that fails is reported, and the others still run. Raises HpcmError at the end if any failed."""
    clock = Clock(plan.check_seconds)
    use_here(plan)
    keep_what_came()
    install_wheels()  # this machine may be a new one
    failed = []
    report: dict[str, Any] = {}
    for name, part in (("symbols", symbols), ("operator", operator), ("bench", bench)):
        began = time.monotonic()
        try:
            report[name] = part(plan, clock)
        except Exception as error:  # CUDA's errors are plain RuntimeErrors
            failed.append(name)
            report[name] = f"FAILED: {type(error).__name__}: {error}"
            print(report[name], flush=True)
        print(f"{name}: {time.monotonic() - began:.1f} s, {clock.left:.0f} s left", flush=True)
        (out() / "check.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if failed:
        raise HpcmError(f"these checks failed: {', '.join(failed)}", advice="see above, and check.json")


def symbols(plan: Plan, clock: Clock) -> list[dict[str, Any]]:
    """Encode with the shipped model on both devices, and decode each file on both; raises HpcmError where symbols differ."""
    from hpcm_codec.codec import load_codec
    from hpcm_codec.images import read_picture

    codecs = {"cpu": load_codec(device="cpu"), plan.device: load_codec(device=plan.device)}
    found: list[dict[str, Any]] = []
    for name in plan.check_pictures:
        picture = read_picture(home() / "checks" / "pictures" / name)
        for quality in plan.check_qualities:
            if clock.left < 0.4 * plan.check_seconds:
                print("NOTE: the other pictures are left out for want of time")
                return _all_equal(found)
            files = {device: codec.encode(picture, quality) for device, codec in codecs.items()}
            row: dict[str, Any] = {"picture": name, "quality": quality, "same file": len(set(files.values())) == 1}
            for device, data in files.items():
                digests = {codec.symbol_digest(data) for codec in codecs.values()}
                row[f"{device}'s file read alike"] = len(digests) == 1
            found.append(row)
            print(row, flush=True)
    return _all_equal(found)


def _all_equal(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not rows or not all(value for row in rows for key, value in row.items() if key.endswith("alike")):
        raise HpcmError(f"symbols differ between the devices: {rows}")
    return rows


def operator(plan: Plan, clock: Clock) -> list[dict[str, Any]]:
    """Time of Bi-WKV4's two passes, and the time to read and write their arrays once at the speed of a copy."""
    from bench_biwkv4 import child

    copy = copy_speed(plan.device)
    print(f"a copy reads and writes {copy / 1e9:.0f} GB/s")
    rows = []
    for batch, length, channels in plan.operator_sizes:
        measured = child(plan.operator, batch, length, channels, 1, 0.5)
        row: dict[str, Any] = {"batch": batch, "length": length, "channels": channels}
        for name, arrays in (("forward", FORWARD_ARRAYS), ("backward", BACKWARD_ARRAYS)):
            floor = 1e3 * arrays * 4 * batch * length * channels / copy
            row |= {f"{name} ms": measured.get(f"{name} ms"), f"{name} floor ms": floor}
        rows.append(row)
        print(row, flush=True)
    return rows


def copy_speed(device: str) -> float:
    """Bytes read and written in a second by a copy of one large array; the best of several."""
    import torch

    x = torch.rand(2**28 if device == "cuda" else 2**22, device=device)
    y = torch.empty_like(x)
    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(10):
        wait()
        began = time.perf_counter()
        y.copy_(x)
        wait()
        times.append(time.perf_counter() - began)
    return 2 * x.element_size() * x.numel() / min(times)


def bench(plan: Plan, clock: Clock) -> dict[str, Any]:
    """`hpcm bench` of encoding and decoding, by stage; raises HpcmError where it fails."""
    results = out() / "bench.json"
    picture = home() / "checks" / "pictures" / plan.check_pictures[0]
    command = hpcm("bench", "--device", plan.device, "--image", picture, "--json", results, "-f", *plan.bench)
    if not run_for(command, plan, clock.left - 5, clock):
        raise HpcmError("`hpcm bench` did not end well")
    found: dict[str, Any] = json.loads(results.read_text())
    return found["ceilings"]
