"""Memory that all processes of one machine share.

It has no name in any file system: the system frees it when the last process that uses it ends, for whatever reason, and the size of
/dev/shm does not limit it. The other processes open it through process 0's entry in /proc, which only Linux has.
"""

from __future__ import annotations

import mmap
import os
import random
import struct

import torch

from hpcm_codec.training.processes import Processes

HEAD = 64  # bytes before what the callers store: a number by which this memory is recognised


def on_one_machine(processes: Processes) -> bool:
    """Whether all processes run here, as torchrun sets it in LOCAL_WORLD_SIZE."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == processes.world


def shared_memory(processes: Processes, size: int) -> mmap.mmap:
    """HEAD bytes and `size` bytes of zeros, the same memory in all processes, which all call this together.

    Raises OSError in all of them when one cannot have it.
    """
    file, memory, number, reason = -1, None, random.SystemRandom().getrandbits(52), ""
    if processes.rank == 0:
        try:
            file = os.memfd_create("hpcm-training")
            os.posix_fallocate(file, 0, HEAD + size)  # too little memory shows here, not at a later write
            memory = mmap.mmap(file, HEAD + size)
            struct.pack_into("q", memory, 0, number)
        except (OSError, AttributeError) as error:
            memory, reason = None, str(error)
    owner, entry, number = (int(value) for value in processes.of_first((os.getpid(), file, number)))
    if processes.rank != 0 and entry >= 0:
        try:
            file = os.open(f"/proc/{owner}/fd/{entry}", os.O_RDWR)
            memory = mmap.mmap(file, HEAD + size)
            if struct.unpack_from("q", memory, 0)[0] != number:
                memory, reason = None, "process 0 is on another machine"
        except (OSError, ValueError) as error:
            memory, reason = None, str(error)
    everywhere = float(processes.mean(torch.tensor([float(memory is not None)]))) == 1
    if file >= 0:
        os.close(file)  # the mapping stays
    if memory is None or not everywhere:
        raise OSError(reason or "another process cannot have it")
    return memory
