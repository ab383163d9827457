"""One piece of static memory, lent out at planned addresses.

Guarantees, each asserted in tests/offload/activations/test_arena.py:
- a lease is never given while another that shares bytes with it is in use, by whatever tensor;
- a lease ends when the last tensor on it is gone.
"""

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from offload.disk.tier import page_aligned


class Arena:
    """`size_bytes` of one device, allocated once, starting at a page on the CPU."""

    def __init__(self, size_bytes: int, device: torch.device) -> None:
        self.size_bytes = size_bytes
        self._device = device
        if device.type == "cuda":
            self._memory_N = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        else:
            self._memory_N = page_aligned(size_bytes)[:size_bytes]
        self._leases: list[tuple[int, int, StorageWeakRef]] = []

    def lease(self, start: int, num_bytes: int) -> Tensor | None:
        """Flat uint8 on [start, start + num_bytes); None while a tensor is using some of it.

        It has a storage of its own, so that its end can be seen however it is viewed meanwhile. On
        CUDA the end is the host's: order other streams behind the current one before they write.

        Raises:
            ValueError: The range is not within the arena.
        """
        end = start + num_bytes
        if start < 0 or num_bytes <= 0 or end > self.size_bytes:
            raise ValueError(f"[{start}, {end}) is not within an arena of {self.size_bytes} bytes")
        self._leases = [lease for lease in self._leases if not lease[2].expired()]
        if any(start < other_end and other < end for other, other_end, _ in self._leases):
            return None
        lent_N = self._lend(start, num_bytes)
        self._leases.append((start, end, StorageWeakRef(lent_N.untyped_storage())))
        return lent_N

    def _lend(self, start: int, num_bytes: int) -> Tensor:
        if self._device.type == "cuda":
            region = _DeviceRegion(self._memory_N, start, num_bytes)
            return torch.as_tensor(region, device=self._device)
        return torch.from_numpy(self._memory_N.numpy()[start : start + num_bytes])


class _DeviceRegion:
    """Part of a device tensor, for `torch.as_tensor` to build a storage on; keeps it alive."""

    def __init__(self, memory_N: Tensor, start: int, num_bytes: int) -> None:
        self._memory_N = memory_N
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (memory_N.data_ptr() + start, False),
            "strides": None,
            "version": 3,
        }
