"""From fp32 masters back to the sharded weights, gathered from slow links to fast.

Each slow link carries every weight once: ranks gather over `optimizer` what their own column of
ranks holds, and only then over `gradients` what their neighbours got.

G and O are the ranks on `gradients` and `optimizer`, S the elements of one rank's slot (see
shards), M the bytes or elements of one rank's message.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from comms.ledger import Started
from parallel.hierarchy.int8 import decode, encode
from parallel.hierarchy.shards import ShardGroup
from parallel.hierarchy.traffic import Line


@dataclass
class _Gather:
    """One block's gather over the slow links."""

    group: ShardGroup
    message_M: Tensor
    column_OM: Tensor
    work: Started | None


def local_shard(parameter: Tensor) -> Tensor:
    """The memory of a weight on this rank, sharded or not."""
    with torch.no_grad():
        return parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()


class Publisher:
    """Writes the masters' values into the model's weights. All data ranks call it alike."""

    def __init__(
        self,
        groups: Sequence[ShardGroup],
        *,
        param_dtype: torch.dtype,
        lines: dict[str, Line],
        quantized: bool,
    ) -> None:
        self._groups = [group for group in groups if group.slots]
        self._dtype = param_dtype
        self._outer = lines["optimizer"]
        self._inner = lines["gradients"]
        # Alone on both axes there is nothing to send, and nothing to lose by rounding.
        self._quantized = quantized and self._outer.ranks * self._inner.ranks > 1

    @torch.no_grad()
    def publish(self, model: nn.Module) -> None:
        """Gather block after block; while one is unpacked, the next is on the slow links."""
        begun: _Gather | None = None
        for group in self._groups:
            following = self._begin(group)
            if begun is not None:
                self._end(begun, model)
            begun = following
        if begun is not None:
            self._end(begun, model)

    def _begin(self, group: ShardGroup) -> _Gather:
        message_M = (
            encode(group.master_S, group.slots)
            if self._quantized
            else group.master_S.to(self._dtype)
        )
        column_OM = message_M.unsqueeze(0)
        if self._outer.ranks > 1:
            column_OM = message_M.new_empty(self._outer.ranks, message_M.numel())
        return _Gather(group, message_M, column_OM, self._outer.all_gather(column_OM, message_M))

    def _end(self, gather: _Gather, model: nn.Module) -> None:
        self._outer.wait(gather.work)
        all_GOM = gather.column_OM.unsqueeze(0)
        if self._inner.ranks > 1:
            all_GOM = gather.column_OM.new_empty(self._inner.ranks, *gather.column_OM.shape)
            self._inner.wait(self._inner.all_gather(all_GOM, gather.column_OM))
        group = gather.group
        weights_GOS = decode(all_GOM, group.slots, self._dtype) if self._quantized else all_GOM
        for slot in group.slots:
            group.unpack(slot, weights_GOS, local_shard(model.get_parameter(slot.name)))
