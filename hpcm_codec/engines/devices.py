"""Which device a name means on this machine."""

from __future__ import annotations

import torch

from hpcm_codec.errors import UsageError


def device_of(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means here; raises UsageError for other names and for a device there is not."""
    kind, _, number = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdecimal())):
        raise UsageError(f"a device is auto, cpu, cuda or cuda:N, not {name!r}")
    present = torch.cuda.device_count() if kind != "cpu" and torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not present):
        return torch.device("cpu")
    if not present:
        raise UsageError("this machine has no CUDA device that torch can use", advice="use --device cpu")
    index = int(number) if number else torch.cuda.current_device()
    if index >= present:
        raise UsageError(f"this machine has {present} CUDA devices, and none has the number {index}")
    return torch.device("cuda", index)
