"""Compression of FSDP2's gradient shards over replicas, on a mesh that has a shard axis alone:

    hooks = compress_shards(model, Exchange(config, group=replicas))   # after fully_shard
    loss.backward(); hooks.finish(); optimizer.step()

Where a step has several backwards, call `hooks.start_round(last=...)` before each.

Guarantees, each asserted in tests/comms/compression/test_fsdp.py:
- without compression, gradients equal those of one process, however many rounds a step has;
- nothing is exchanged before the last round, and rounds add up locally;
- exchanges go on beside the rest of backward.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Protocol

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from comms.compression.flat import FlatGradient, Piece
from comms.compression.runner import Pending


class ShardExchange(Protocol):
    """Something that sums flat gradients over replicas, such as
    `comms.compression.exchange.Exchange`."""

    @property
    def ranks(self) -> int:
        """Ranks whose gradients are summed."""

    def start(
        self, key: str, flat: Tensor, shapes: Sequence[Sequence[int]] | None = None
    ) -> Pending:
        """Begin to sum `flat` in place; `shapes` are those of the tensors in it, in order."""


class ShardHooks:
    """The exchange of all FSDP modules of a model."""

    def __init__(self, hooks: "Sequence[_ModuleHook]") -> None:
        self._hooks = hooks

    def flat_gradients(self) -> dict[str, FlatGradient]:
        """What lies in each module's flat gradient, by the key under which it is exchanged."""
        return {hook.key: hook.layout for hook in self._hooks}

    def start_round(self, *, last: bool) -> None:
        """Before each forward and backward; on the last one of a step, sums are exchanged."""
        for hook in self._hooks:
            hook.last = last

    def finish(self) -> None:
        """After the last backward: wait until all sums are in the gradients."""
        for hook in self._hooks:
            hook.finish()


def compress_shards(
    model: nn.Module,
    exchange: ShardExchange,
    *,
    average: bool = True,
    tensor_parallel: bool = False,
) -> ShardHooks:
    """Sum the gradient shards of every FSDP module over the exchange's ranks.

    With `average`, gradients are divided by all ranks, as FSDP2 does by itself; without, they are
    sums. With `tensor_parallel`, what the ranks of that axis hold alike travels uncompressed: they
    compress it beside different tensors, and would not get the same. All ranks call it, after
    `fully_shard`. Raises ValueError where the model has no FSDP
    module, or its mesh has more than the shard axis.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, FSDPModule)}
    if not modules:
        raise ValueError("The model has no FSDP module: call fully_shard first.")
    hooks = []
    for name, module in modules.items():
        layout = _layout(_own_parameters(module), tensor_parallel=tensor_parallel)
        hook = _ModuleHook(name or "root", layout, exchange, average=average)
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)
        module.set_all_reduce_hook(hook)
        hooks.append(hook)
    return ShardHooks(hooks)


class _ModuleHook:
    """Gets what one module's reduce-scatter left on this rank.

    FSDP2 makes new gradients views of what it hands over. So the gradients are forgotten before
    the last round is added to them, and the sum, once there, is written where they lie.
    """

    def __init__(
        self, key: str, layout: FlatGradient, exchange: ShardExchange, *, average: bool
    ) -> None:
        self.last = True
        self.key = key
        self.layout = layout
        parameters = [piece.parameter for piece in layout.pieces]
        first = _sharded(parameters[0])
        mesh = first.device_mesh
        if first.placements[0].is_replicate():
            raise ValueError(
                f"{key} is spread over the axes {mesh.mesh_dim_names}; pass fully_shard the shard "
                "axis alone, the exchange takes the place of the others."
            )
        self._parameters = parameters
        self._exchange = exchange
        self._divisor = exchange.ranks * mesh.size(0) if average else 1
        self._flat: Tensor | None = None
        self._pending: Pending | None = None

    def __call__(self, reduced: Tensor) -> None:
        if self._flat is not None:
            if reduced.numel() != self._flat.numel():
                raise RuntimeError(
                    f"{self.key} had gradients of {self._flat.numel()} elements in one round and "
                    f"{reduced.numel()} in another: the same parameters must take part in all."
                )
            if self.last:
                reduced += self._flat
        if self._flat is None or self.last:
            # FSDP2 then makes new gradients, views of `reduced`, and adds to them from here on.
            self._flat = reduced
            for parameter in self._parameters:
                parameter.grad = None
        if self.last:
            whole = reduced.numel() == self.layout.numel
            self._pending = self._exchange.start(
                self.key, reduced, self.layout.shapes if whole else None
            )

    def finish(self) -> None:
        if self._pending is None or self._flat is None:
            return
        self._pending.wait()
        self._check_views(self._flat)
        if self._divisor != 1:
            self._flat /= self._divisor
        self._flat = self._pending = None

    def _check_views(self, flat: Tensor) -> None:
        memory = flat.untyped_storage().data_ptr()
        whole = flat.numel() == self.layout.numel
        for piece in self.layout.pieces:
            local = _local(piece.parameter.grad)
            if local is None or not local.numel():
                continue
            moved = whole and local.storage_offset() != piece.start
            if moved or local.untyped_storage().data_ptr() != memory:
                raise RuntimeError(
                    f"Gradients of {self.key} were copied after their reduction: compression "
                    "needs fp32 parameters, reduce_dtype=torch.float32 and no CPU offload policy."
                )


def _own_parameters(module: FSDPModule) -> list[nn.Parameter]:
    """Parameters that this FSDP module shards itself, in its order."""
    assert isinstance(module, nn.Module)
    inner = [m for m in module.modules() if isinstance(m, FSDPModule) and m is not module]
    taken = {p for m in inner if isinstance(m, nn.Module) for p in m.parameters()}
    return [p for p in module.parameters() if p not in taken and p.requires_grad]


def _sharded(parameter: nn.Parameter) -> DTensor:
    assert isinstance(parameter, DTensor)
    return parameter


def _local(gradient: Tensor | None) -> Tensor | None:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _layout(parameters: list[nn.Parameter], *, tensor_parallel: bool) -> FlatGradient:
    """Where this rank's part of each parameter lies in the reduce-scatter output, which is filled
    up like on all ranks."""
    shapes = tuple(_padded_shape(parameter, tensor_parallel) for parameter in parameters)
    starts = list(accumulate((prod(shape) for shape in shapes), initial=0))
    locals_ = (_sharded(parameter).to_local() for parameter in parameters)
    pieces = (
        Piece(parameter, start, local.numel())
        for parameter, start, local in zip(parameters, starts, locals_, strict=False)
    )
    return FlatGradient(starts[-1], shapes, tuple(pieces))


def _padded_shape(parameter: nn.Parameter, tensor_parallel: bool) -> tuple[int, ...]:
    """Shape of this parameter's part on the rank that has most of it; that of a vector, which
    travels uncompressed, where ranks of a tensor axis hold the same. The shard axis comes first in
    a mesh, and cuts what the other axes leave."""
    tensor = _sharded(parameter)
    shape = list(tensor.shape)
    cuts = list(zip(tensor.placements, tensor.device_mesh.shape, strict=True))
    for placement, ranks in reversed(cuts):
        if isinstance(placement, Shard | _StridedShard):
            shape[placement.dim] = -(-shape[placement.dim] // ranks)
    alike = len(cuts) == 1 or any(placement.is_replicate() for placement, _ in cuts)
    return (prod(shape),) if tensor_parallel and alike else tuple(shape)
