"""The device that a name means on this machine. Torch takes a second to import, and is imported only where there may be a CUDA device."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from hpcm_codec.errors import UsageError
from hpcm_codec.system.threads import import_torch

_SIGNS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # of a driver on Linux; the last in WSL


def may_have_cuda() -> bool:
    """False where there is certainly no CUDA device that torch could use; True where only torch can decide."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if sys.modules.get("torch") is not None or sys.platform not in ("linux", "darwin"):
        return True
    if sys.platform == "darwin":
        return False
    if any(Path(sign).exists() for sign in _SIGNS):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def has_cuda() -> bool:
    """Whether torch can use a CUDA device."""
    if not may_have_cuda():
        return False
    import_torch()
    import torch

    return bool(torch.cuda.is_available())


def is_device_name(name: object) -> bool:
    """Whether the name is "auto", "cpu", "cuda" or "cuda:N"; does not check that there is such a device."""
    kind, colon, number = name.partition(":") if isinstance(name, str) else ("", "", "")
    return kind in ("auto", "cpu", "cuda") and (not colon or (kind == "cuda" and number.isdecimal()))


def device_of(name: str) -> str:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means here: "cpu" or "cuda:N".

    Raises UsageError for other names and for a device that does not exist.
    """
    if not is_device_name(name):
        raise UsageError(f"a device is auto, cpu, cuda or cuda:N, not {name!r}")
    kind, _, number = name.partition(":")
    if kind == "cpu" or (kind == "auto" and not has_cuda()):
        return "cpu"
    if not has_cuda():
        raise UsageError("this machine has no CUDA device that torch can use", advice="use --device cpu")
    import torch

    present = torch.cuda.device_count()
    index = int(number) if number else torch.cuda.current_device()
    if index >= present:
        raise UsageError(f"this machine has {present} CUDA devices, and none has the number {index}")
    return f"cuda:{index}"
