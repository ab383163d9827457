"""The memory of tensors as bytes."""

import torch
from torch import Tensor


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor as uint8."""
    return tensor.contiguous().view(torch.uint8)


def from_bytes(code: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 read as `dtype`; copied where it does not begin on that type's boundary."""
    if code.storage_offset() % dtype.itemsize:
        code = code.clone()
    return code.view(dtype)
