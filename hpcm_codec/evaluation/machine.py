"""A description of the machine, without which times cannot be compared, and the memory of a process."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from hpcm_codec.system.threads import thread_count


def processor_name() -> str:
    """The processor's name, or the architecture where the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    """Logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float:
    """The number of processes that could run, on average over the last minute; 0 where the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def describe_machine(device: str | None = None) -> dict[str, str | int]:
    """Processor, cores, system, Python; with a device ("cpu", "cuda"…) also its threads, torch where it is loaded, the GPU."""
    machine: dict[str, str | int] = {
        "processor": processor_name(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if device is not None:
        machine |= {"threads": thread_count(), "device": device}
        torch = sys.modules.get("torch")  # a codec on the CPU does not load it
        if torch is not None:
            machine["torch"] = str(torch.__version__)
        if torch is not None and device.startswith("cuda"):
            machine["gpu"] = torch.cuda.get_device_name(device)
    return machine


def machine_in_words(machine: dict[str, str | int]) -> str:
    """One line for a table's foot.

    >>> machine_in_words({"processor": "Abacus 9", "cores": 2, "python": "3.12.1"})
    'Abacus 9, 2 cores, Python 3.12.1'
    """
    parts = [f"{machine['processor']}", f"{machine['cores']} cores"]
    if "gpu" in machine:
        parts.append(f"{machine['gpu']}")
    if "threads" in machine:
        library = f"torch {machine['torch']} " if "torch" in machine else ""
        parts.append(f"{library}on {machine['device']} with {machine['threads']} threads")
    return ", ".join([*parts, f"Python {machine['python']}"])


def peak_memory_of_this_process() -> int:
    """The most memory (bytes, resident) this process has held since it started its program.

    On Linux from VmHWM: ru_maxrss there also counts what the parent held when it forked.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


class PeakMemory:
    """The most memory this process holds at once, between two calls of `taken`.

    Linux only: elsewhere, and where /proc cannot be written to, the result is None.
    """

    def __init__(self) -> None:
        self._works = self._begin()

    def taken(self) -> int | None:
        """Bytes, resident, since the object was made or last asked; everything the process holds is counted."""
        if not self._works:
            return None
        peak = peak_memory_of_this_process()
        self._works = self._begin()
        return peak

    @staticmethod
    def _begin() -> bool:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # 5: set VmHWM to what is held now
        except OSError:
            return False
        return True
