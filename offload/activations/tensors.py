"""Tensors seen as storages: which bytes they share, how to see them again, who changed them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.distributed.tensor import DTensor

_FUNCTIONS_FROM_WEIGHT = 4
"""Most views between a weight and what a product saves of it."""


@dataclass(frozen=True, slots=True)
class View:
    """How a tensor looks at its storage."""

    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    """In elements."""

    @staticmethod
    def of(tensor: Tensor) -> "View":
        """The view that `tensor` is."""
        return View(tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def on(self, bytes_N: Tensor) -> Tensor:
        """The same view of `bytes_N`, a flat uint8 copy of the storage. Shares its memory."""
        whole = bytes_N.nbytes // self.dtype.itemsize * self.dtype.itemsize
        elements_M = bytes_N[:whole].view(self.dtype)
        start = elements_M.storage_offset() + self.offset
        return torch.as_strided(elements_M, self.size, self.stride, start)


class VersionProbe:
    """Sees in-place changes of a tensor, and of all views of it, without keeping its memory."""

    def __init__(self, tensor: Tensor) -> None:
        self._alias = tensor.detach()
        # The alias gives up the storage and keeps the version counter it shares with the tensor.
        self._alias.data = tensor.new_empty(0)
        self._version = self._alias._version

    @property
    def changed(self) -> bool:
        """Whether the tensor was written to since the probe was made."""
        return self._alias._version != self._version


def storage_bytes(tensor: Tensor) -> Tensor:
    """The whole storage of `tensor` as flat uint8; shares and holds its memory."""
    storage = tensor.untyped_storage()
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return flat.set_(storage, 0, (storage.nbytes(),), (1,))


def is_plain(tensor: Tensor) -> bool:
    """Whether a strided view of its storage's bytes is all there is to the tensor."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def is_weight(tensor: Tensor) -> bool:
    """Whether the tensor is a parameter, or another leaf that collects a gradient, or a view of
    one, or of what this rank holds of one. Their memory stays whatever happens to the graph, and
    FSDP2 frees and refills it in place.
    """
    owner = tensor if tensor._base is None else tensor._base
    if isinstance(owner, nn.Parameter) or (owner.is_leaf and owner.requires_grad):
        return True
    # The local part of a DTensor comes out of a function of its own: only the graph leads back.
    leaf = _leaf_behind(tensor)
    if not isinstance(leaf, DTensor):
        return False
    with torch.no_grad():
        mine = leaf.to_local().untyped_storage()
    return mine._cdata == tensor.untyped_storage()._cdata


def _leaf_behind(tensor: Tensor) -> object:
    """The leaf that a few functions of one argument made `tensor` from, if that is so."""
    node: Node | None = tensor.grad_fn
    for _ in range(_FUNCTIONS_FROM_WEIGHT):
        if node is None or len(node.next_functions) != 1:
            return None
        node = node.next_functions[0][0]
        if node is not None and node.name() == "torch::autograd::AccumulateGrad":
            return node.variable  # type: ignore[attr-defined]
    return None


def is_row_major(tensor: Tensor, rows: int) -> bool:
    """Whether the tensor is its whole storage, `rows` rows one after the other."""
    return (
        tensor.dim() > 0
        and tensor.shape[0] == rows
        and tensor.is_contiguous()
        and tensor.storage_offset() == 0
        and tensor.nbytes == tensor.untyped_storage().nbytes()
    )
