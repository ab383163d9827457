"""Host memory that a device copies from and to at full speed, allocated to the byte.

Torch's own pinned allocator rounds up to powers of two, which doubles what large states take; here
ordinary memory is registered with the driver instead.
"""

import torch
from torch import Tensor

from offload.disk.tier import page_aligned

CUDA_HOST_REGISTER_PORTABLE = 1


class PinningRefused(RuntimeError):
    """The driver or the system does not lock this much memory."""


class HostTensors:
    """Flat fp32 tensors on whole pages, pinned if asked for; they live until `close`."""

    def __init__(self, *, pin: bool) -> None:
        if pin and not torch.cuda.is_available():
            raise PinningRefused("pinned memory needs a CUDA device, found none; use pin=False")
        self._pin = pin
        self._registered: list[Tensor] = []

    def zeros(self, num_elements: int) -> Tensor:
        """A zeroed tensor; pinning it touches its pages, otherwise its first use does."""
        raw = page_aligned(4 * num_elements)
        if self._pin:
            self._register(raw)
        return raw.view(torch.float32)[:num_elements].zero_()

    def close(self) -> None:
        """Unpin. Nothing may be copied any more."""
        for tensor in self._registered:
            torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())
        self._registered.clear()

    def _register(self, tensor: Tensor) -> None:
        result = torch.cuda.cudart().cudaHostRegister(
            tensor.data_ptr(), tensor.nbytes, CUDA_HOST_REGISTER_PORTABLE
        )
        if int(result) != 0:
            raise PinningRefused(
                f"cannot pin {tensor.nbytes} bytes of host memory (CUDA error {int(result)}); "
                "raise the container's memory or memlock limit, keep a larger share on disk, "
                "or set pin=False and accept slower copies"
            )
        self._registered.append(tensor)
