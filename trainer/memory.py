"""How much memory a rank uses and has."""

import os
from pathlib import Path

import torch

_GIB = 2**30


def device_memory_gib(device: torch.device) -> float:
    """Highest memory reserved on a CUDA device; on CPU, resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / _GIB
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE") / _GIB


def device_capacity_bytes(device: torch.device, *, ranks_on_host: int) -> int:
    """Memory of a CUDA device; on CPU, this rank's even part of the host's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // ranks_on_host
