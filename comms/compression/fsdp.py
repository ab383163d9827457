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

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from comms.compression.exchange import Exchange
from comms.compression.runner import Pending


class ShardHooks:
    """The exchange of all FSDP modules of a model."""

    def __init__(self, hooks: "Sequence[_ModuleHook]") -> None:
        self._hooks = hooks

    def start_round(self, *, last: bool) -> None:
        """Before each forward and backward; on the last one of a step, sums are exchanged."""
        for hook in self._hooks:
            hook.last = last

    def finish(self) -> None:
        """After the last backward: wait until all sums are in the gradients."""
        for hook in self._hooks:
            hook.finish()


def compress_shards(model: nn.Module, exchange: Exchange, *, average: bool = True) -> ShardHooks:
    """Sum the gradient shards of every FSDP module over the exchange's ranks.

    With `average`, gradients are divided by all ranks, as FSDP2 does by itself; without, they are
    sums. All ranks call it, after `fully_shard`. Raises ValueError where the model has no FSDP
    module, or its mesh has more than the shard axis.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, FSDPModule)}
    if not modules:
        raise ValueError("The model has no FSDP module: call fully_shard first.")
    hooks = []
    for name, module in modules.items():
        hook = _ModuleHook(name or "root", _own_parameters(module), exchange, average=average)
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
        self, key: str, parameters: list[nn.Parameter], exchange: Exchange, *, average: bool
    ) -> None:
        self.last = True
        self._key = key
        self._parameters = parameters
        self._exchange = exchange
        mesh = _sharded(parameters[0]).device_mesh
        if mesh.ndim != 1:
            raise ValueError(
                f"{key} is spread over the axes {mesh.mesh_dim_names}; pass fully_shard the shard "
                "axis alone, the exchange takes the place of the others."
            )
        self._divisor = exchange.ranks * mesh.size() if average else 1
        self._shapes = [_padded_shape(parameter) for parameter in parameters]
        self._flat: Tensor | None = None
        self._pending: Pending | None = None

    def __call__(self, reduced: Tensor) -> None:
        if self._flat is not None:
            if reduced.numel() != self._flat.numel():
                raise RuntimeError(
                    f"{self._key} had gradients of {self._flat.numel()} elements in one round and "
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
            whole = sum(_numel(shape) for shape in self._shapes) == reduced.numel()
            self._pending = self._exchange.start(
                self._key, reduced, self._shapes if whole else None
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
        for parameter in self._parameters:
            local = _local(parameter.grad)
            if local is not None and local.untyped_storage().data_ptr() != memory:
                raise RuntimeError(
                    f"Gradients of {self._key} were copied after their reduction: compression "
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


def _padded_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of this parameter's part of the reduce-scatter output, filled up like on all ranks."""
    tensor = _sharded(parameter)
    placement = tensor.placements[0]
    assert isinstance(placement, Shard)
    shape = list(tensor.shape)
    shape[placement.dim] = -(-shape[placement.dim] // tensor.device_mesh.size())
    return torch.Size(shape)


def _numel(shape: torch.Size) -> int:
    return shape.numel()
