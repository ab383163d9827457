"""Layers whose weights are cut over the tensor axis.

T tokens, D model width, V vocabulary, d head width.

A feed-forward of plain PyTorch over the ranks of `axis`, two lines and one for the region:

    mlp.up, mlp.down = ColumnLinear(mlp.up, axis), RowLinear(mlp.down, axis)
    begin_region_at(mlp, axis)

Parameters keep their names and become DTensors, whose global form does not depend on the number
of ranks; arithmetic and collectives are local, so that every byte is counted. FSDP2 may be applied
afterwards over another axis of the same mesh. All ranks of the axis build and call the layers.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from parallel.layout import divisors
from parallel.tensor.axis import TensorAxis

# The last dim of gate and up stacked: each half is cut, and a rank holds its part of both.
HALVES_OF_LAST = _StridedShard(2, split_factor=2)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a parameter, cut or not; gradients flow back to it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut(parameter: Tensor, placement: Placement, axis: TensorAxis) -> nn.Parameter:
    """A parameter of which this rank holds its part; nothing is sent. May be on meta.

    Raises ValueError where the ranks do not divide the size, or the parameter is cut already.
    """
    if isinstance(parameter, DTensor):
        raise ValueError(
            f"the parameter is cut already, {parameter.placements} over "
            f"{parameter.device_mesh.mesh_dim_names}; apply tensor parallelism first"
        )
    assert isinstance(placement, (Shard, _StridedShard))
    halves = placement.split_factor if isinstance(placement, _StridedShard) else 1
    size = parameter.shape[placement.dim] // int(halves)
    if size % axis.ranks:
        raise ValueError(
            f"{axis.name}={axis.ranks} does not divide dim {placement.dim} of a parameter of shape "
            f"{tuple(parameter.shape)}; choose one of {divisors(size)}"
        )
    spread = distribute_tensor(parameter.detach(), axis.mesh, [placement], src_data_rank=None)
    return nn.Parameter(spread, requires_grad=parameter.requires_grad)


class ColumnLinear(nn.Linear):
    """A linear layer that computes its part of the output features: [.., in] to [.., out / ranks].

    The input is the same on all ranks and its gradient partial: the region around it sums it.
    """

    def __init__(self, linear: nn.Linear, axis: TensorAxis) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = cut(linear.weight, Shard(0), axis)
        if linear.bias is not None:
            self.bias = cut(linear.bias, Shard(0), axis)

    def forward(self, x: Tensor) -> Tensor:
        """This rank's output features."""
        bias = None if self.bias is None else local(self.bias)
        return F.linear(x, local(self.weight), bias)


class RowLinear(nn.Linear):
    """A linear layer that is given its part of the input features: [.., in / ranks] to [.., out].

    With `sums` the outputs are added over the ranks, without it they stay partial.
    """

    def __init__(self, linear: nn.Linear, axis: TensorAxis, *, sums: bool = True) -> None:
        if linear.bias is not None and not sums:
            raise ValueError("a partial row layer has no place for a bias; use sums=True")
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = cut(linear.weight, Shard(1), axis)
        self.bias = linear.bias
        self._axis = axis
        self._sums = sums

    def forward(self, x: Tensor) -> Tensor:
        """The sum over ranks, the same on all of them, or this rank's part of it."""
        out = F.linear(x, local(self.weight))
        if not self._sums:
            return out
        out = self._axis.sum_partial(out)
        return out if self.bias is None else out + self.bias


class VocabularyEmbedding(nn.Embedding):
    """An embedding of which each rank holds V / ranks rows; looked up locally and summed."""

    def __init__(self, embedding: nn.Embedding, axis: TensorAxis) -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.weight = cut(embedding.weight, Shard(0), axis)
        self._axis = axis

    def forward(self, tokens_T: Tensor) -> Tensor:
        """[T, D], the same on all ranks. Exact: all summands but one are zero."""
        weight_VD = local(self.weight)
        rows = weight_VD.shape[0]
        own_T = tokens_T - self._axis.rank * rows
        foreign_T = (own_T < 0) | (own_T >= rows)
        x_TD = F.embedding(own_T.masked_fill(foreign_T, 0), weight_VD)
        return self._axis.sum_partial(x_TD.masked_fill(foreign_T.unsqueeze(-1), 0.0))


class HeadNorm(nn.RMSNorm):
    """The RMS norm of this rank's heads [T, heads, d]. Its weight is whole on every rank and used
    by other heads on each, so its gradient is summed."""

    def __init__(self, norm: nn.RMSNorm, axis: TensorAxis) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps, device="meta")
        self.weight = norm.weight
        self._axis = axis

    def forward(self, x_THd: Tensor) -> Tensor:
        """Each head normalised."""
        weight_d = self._axis.begin_region(local(self.weight))
        return F.rms_norm(x_THd, self.normalized_shape, weight_d, self.eps)


def begin_region_at(module: nn.Module, axis: TensorAxis) -> None:
    """Let `module`, called with the activations first, be the begin of a region: the gradient of
    that argument is summed once, however many column layers read it."""

    def begin(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (axis.begin_region(arguments[0]), *arguments[1:])

    module.register_forward_pre_hook(begin)


def end_region_at(module: nn.Module, axis: TensorAxis) -> None:
    """Let `module`, which returns partial activations, alone or first in a tuple, be the end of a
    region: they are summed."""

    def end(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return axis.sum_partial(output)
        return (axis.sum_partial(output[0]), *output[1:])

    module.register_forward_hook(end)


def tensor_copies(model: nn.Module, axis: TensorAxis) -> dict[str, int]:
    """For every parameter, how many ranks of the axis hold the same numbers: 1 or all of them.

    Sums over parameters and ranks, such as the squared gradient norm, divide by it. The model may
    be sharded over other axes in addition.
    """
    return {name: 1 if _is_cut(p, axis) else axis.ranks for name, p in model.named_parameters()}


def _is_cut(parameter: Tensor, axis: TensorAxis) -> bool:
    if not isinstance(parameter, DTensor):
        return False
    names = parameter.device_mesh.mesh_dim_names or ()
    places = zip(names, parameter.placements, strict=False)
    return any(name == axis.name and not placement.is_replicate() for name, placement in places)
