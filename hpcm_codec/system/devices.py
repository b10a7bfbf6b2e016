"""Whether this machine may have a CUDA device, without importing torch, which takes a second."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from hpcm_codec.system.threads import import_torch

_SIGNS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # of a driver on Linux; the last in WSL


def may_have_cuda() -> bool:
    """False where there is certainly no CUDA device that torch could use; True where torch has to be asked."""
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
