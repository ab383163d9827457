"""Sum gradients in stages, from fast links to slow, keeping only a part between the stages.

A rank's gradients of a block leave backward, already summed over `weights`, as fp32. Every round
they are reduce-scattered over `gradients` and added to what the rank keeps; in the last round that
is reduce-scattered over `optimizer` and all-reduced over `replica`. Each stage sends what the stage
before has left over: a link that is crossed later carries less, and once per step.

G and O are the ranks on `gradients` and `optimizer`, S the elements of one rank's slot (shards.py).

Guarantees, each asserted in tests/parallel/hierarchy/test_gradients.py:
- after `finish`, the masters' gradients are the sums over all data ranks;
- stages run in the same order on every rank, also where a parameter took no part in a round;
- a rank keeps O x S fp32 per block between rounds, whatever the rounds;
- without the last round nothing crosses `optimizer` or `replica`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from comms.ledger import Started
from parallel.hierarchy.shards import ShardGroup, Slot
from parallel.hierarchy.traffic import Line


class _Sums:
    """One block's gradients on their way through the stages."""

    def __init__(self, shards: ShardGroup, mesh: DeviceMesh) -> None:
        groups, parts = shards.widths.cuts[1:]
        self.shards = shards
        self.kept_OS = shards.master_S.new_zeros(parts, shards.slot_elements)
        # The sum of the rank's own slot is left where its own unsummed part was.
        self.own_S = self.kept_OS[shards.place[2]]
        self.gradients = {s.name: shards.spread(self.own_S, s, mesh) for s in shards.slots}
        self.groups = groups
        self.arrived: set[str] = set()
        self.arriving_GOS: Tensor | None = None
        self.received_OS: Tensor | None = None
        self.work: Started | None = None

    @property
    def complete(self) -> bool:
        return len(self.arrived) == len(self.shards.slots)

    def buffer_GOS(self) -> Tensor:
        """Where this round's gradients are collected: alone, they are added to the kept ones."""
        if self.groups == 1:
            return self.kept_OS.unsqueeze(0)
        if self.arriving_GOS is None:
            self.arriving_GOS = self.kept_OS.new_zeros(self.groups, *self.kept_OS.shape)
        return self.arriving_GOS


class HierarchicalGradients:
    """`parallel.gradients.Gradients` over the masters of a `HierarchicalSharding`.

    Each of `replicas` ranks holds the same optimizer shard.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ShardGroup],
        *,
        mesh: DeviceMesh,
        lines: dict[str, Line],
    ) -> None:
        # Backward reaches the last block first; what is left of the model comes last.
        ordered = sorted(reversed(groups), key=lambda group: not group.is_block)
        self._sums = [_Sums(group, mesh) for group in ordered if group.slots]
        self._lines = lines
        self._last = False
        self._open = False
        self._next = len(self._sums)
        self._in_flight: _Sums | None = None
        self._slow: _Sums | None = None
        self._scattered: Tensor | None = None
        self.replicas = lines["replica"].ranks
        self._listen(model)

    def start_round(self, *, last: bool) -> None:
        """Before each forward and backward; on the last one of a step, all stages run."""
        self._end_round()
        self._last = last
        self._open = True
        self._next = 0
        for sums in self._sums:
            sums.arrived.clear()

    def finish(self) -> None:
        """After the last backward of a step: wait for all stages; masters have gradients then."""
        self._end_round()
        if self._slow is not None:
            self._wait_outer(self._slow)
            self._slow = None
        replica = self._lines["replica"]
        for sums in self._sums:
            if self._lines["optimizer"].ranks > 1:
                replica.wait(replica.all_reduce(sums.own_S))
            for name, master in sums.shards.masters.items():
                master.grad = sums.gradients[name]

    def squared_norm(self) -> Tensor:
        """Sum of squares of this rank's optimizer shard over its number of copies, a 0-dim fp32
        tensor: the shares of all data ranks add up to the squared norm."""
        norms = [torch.linalg.vector_norm(s.own_S) for s in self._sums]
        return torch.stack(norms).square().sum() / self.replicas

    def scale(self, factor: float) -> None:
        """Multiply the gradients of the masters in place."""
        torch._foreach_mul_([s.own_S for s in self._sums], factor)

    def zero(self) -> None:
        """Forget all gradients; their memory stays."""
        torch._foreach_zero_([s.kept_OS for s in self._sums])
        for sums in self._sums:
            for master in sums.shards.masters.values():
                master.grad = None

    @property
    def held_bytes(self) -> int:
        """Bytes of gradients kept from round to round."""
        return sum(s.kept_OS.untyped_storage().nbytes() for s in self._sums)

    def _listen(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_all_reduce_hook(self._keep_scattered)
        for sums in self._sums:
            for slot in sums.shards.slots:
                parameter = model.get_parameter(slot.name)
                parameter.register_post_accumulate_grad_hook(self._on_arrival(sums, slot))

    def _keep_scattered(self, scattered: Tensor) -> None:
        """FSDP2 hands over a block's sums here, and then calls the hooks of its parameters."""
        self._scattered = scattered

    def _on_arrival(self, sums: _Sums, slot: Slot) -> Callable[[Tensor], None]:
        def arrived(parameter: Tensor) -> None:
            if not self._open or slot.name in sums.arrived:
                raise RuntimeError(
                    f"a gradient of {slot.name} came outside of a round or for the second time in "
                    "it; call start_round before each forward and backward"
                )
            shard = self._taken(parameter)
            sums.shards.add_packed(slot, shard, sums.buffer_GOS())
            sums.arrived.add(slot.name)
            if sums.complete:
                self._scattered = None
                self._send_ready()

        return arrived

    def _taken(self, parameter: Tensor) -> Tensor:
        """The gradient of this rank's weight shard, taken away from the parameter."""
        grad = parameter.grad
        assert grad is not None
        parameter.grad = None
        if not isinstance(grad, DTensor):
            return grad
        local, scattered = grad.to_local(), self._scattered
        assert scattered is not None
        if scattered.is_cuda:
            # FSDP2 made it on the stream of its reduction, which must not use it again too early.
            scattered.record_stream(torch.cuda.current_stream())
        # The parameter's own gradient is rounded to the compute dtype; the sums behind it are not.
        return scattered.as_strided(local.shape, local.stride(), local.storage_offset())

    def _end_round(self) -> None:
        """Run what is open: blocks that got no or not all gradients, and the last exchange."""
        for sums in self._sums[self._next :]:
            self._reduce_inner(sums)
        self._next = len(self._sums)
        self._open = False
        self._collect()
        self._scattered = None

    def _send_ready(self) -> None:
        """Send complete blocks, but never one before its predecessor."""
        while self._next < len(self._sums) and self._sums[self._next].complete:
            self._reduce_inner(self._sums[self._next])
            self._next += 1

    def _reduce_inner(self, sums: _Sums) -> None:
        """Start a block's exchange over `gradients`, after having taken in the one before it."""
        self._collect()
        if sums.groups > 1:
            sums.received_OS = torch.empty_like(sums.kept_OS)
            sums.work = self._lines["gradients"].reduce_scatter(sums.received_OS, sums.buffer_GOS())
        self._in_flight = sums

    def _collect(self) -> None:
        """Add what a block received to what is kept, and in the last round send it on."""
        sums, self._in_flight = self._in_flight, None
        if sums is None:
            return
        self._lines["gradients"].wait(sums.work)
        sums.work = None
        if sums.received_OS is not None:
            sums.kept_OS += sums.received_OS
        sums.received_OS = sums.arriving_GOS = None
        if self._last:
            self._reduce_outer(sums)

    def _reduce_outer(self, sums: _Sums) -> None:
        """Send a block's sums over the slow links, one block at a time: gloo copies what is under
        way, and all blocks at once would double the gradients."""
        if self._slow is not None:
            self._wait_outer(self._slow)
        self._slow = sums
        if self._lines["optimizer"].ranks > 1:
            sums.work = self._lines["optimizer"].reduce_scatter(sums.own_S, sums.kept_OS)
        else:
            sums.work = self._lines["replica"].all_reduce(sums.own_S)

    def _wait_outer(self, sums: _Sums) -> None:
        self._lines["optimizer"].wait(sums.work)
        sums.work = None
