"""Move experts between ranks: their weights, and whatever else is stacked like them.

v slots of this rank.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from comms.ledger import Ledger
from parallel.experts.placement import Placement
from parallel.experts.transport import Lane


@dataclass(frozen=True)
class Moves:
    """Which rows a rank sends where, and where rows that come in belong."""

    outgoing: tuple[tuple[int, ...], ...]
    """To each rank: own rows to send."""

    incoming: tuple[tuple[int, ...], ...]
    """From each rank: own rows that they become."""


def moves_between(before: Placement, after: Placement, rank: int) -> Moves:
    """What `rank` does to get from one placement to another; rows travel in order of experts."""
    each = before.per_rank
    outgoing: list[list[int]] = [[] for _ in range(before.ranks)]
    incoming: list[list[int]] = [[] for _ in range(before.ranks)]
    for old, new in zip(before.expert_slot, after.expert_slot, strict=True):
        if before.owner(old) == rank:
            outgoing[after.owner(new)].append(old % each)
        if after.owner(new) == rank:
            incoming[before.owner(old)].append(new % each)
    return Moves(tuple(map(tuple, outgoing)), tuple(map(tuple, incoming)))


@torch.no_grad()
def move_experts(
    tensors: Iterable[Tensor],
    *,
    before: Placement,
    after: Placement,
    group: dist.ProcessGroup,
    ledger: Ledger,
) -> None:
    """Put the rows of every tensor where `after` has them, in place.

    `tensors` are weights and optimizer states: this rank's part [v, …], plain or DTensors that
    `group` shares along dim 0. All ranks of the group call it between two steps, with the same
    placements and tensors alike. Bytes are counted as `ep/move_experts`.
    """
    if before.expert_slot == after.expert_slot:
        return
    moves = moves_between(before, after, group.rank())
    lane = Lane(group, ledger, "move_experts")
    sent, received = [len(r) for r in moves.outgoing], [len(r) for r in moves.incoming]
    leaving = [row for rows in moves.outgoing for row in rows]
    arriving = [row for rows in moves.incoming for row in rows]
    for tensor in tensors:
        rows = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if rows.shape[0] != before.per_rank:
            raise ValueError(
                f"a tensor with {rows.shape[0]} rows here is not stacked by the "
                f"{before.per_rank} experts of a rank; move only tensors that are cut over the "
                "expert group along dim 0"
            )
        rows[arriving] = lane.begin(rows[leaving], sent, received).wait()
