"""How the ranks of an island reach the other islands. Carries CPU tensors.

With layout `same`, every rank meets its equals of the other islands in `group`. With `own`, one
rank of each island, rank 0 of `inside`, meets the others' and passes on what it got; on the other
ranks `group` is None.

Guarantees, each asserted in tests/comms/outer/test_link.py:
- islands train alike whether and however they are sharded, up to the order of sums inside them;
- islands of different sharding hold the same global parameters, bitwise;
- groups that do not fit the layout are refused.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor

from comms.outer.config import IslandLayout
from comms.volume import all_reduce_bytes

Count = Callable[[str, str, int], None]
"""Takes axis, operation and bytes."""

Record = Callable[[str, str, int, dist.ProcessGroup], AbstractContextManager[None]]
"""Takes axis, operation, bytes and the group; what is inside is one collective."""

_VOTE_BYTES = 4
_INSIDE = "island_inside"


class IslandLostError(RuntimeError):
    """An island did not answer."""


class IslandLink:
    """The groups of one membership. All ranks of an island make it at the same time.

    The groups must be used by nothing else, as their collectives run on another thread. Raises
    ValueError where a group does not fit the layout or carries no CPU tensors.
    """

    def __init__(
        self,
        layout: IslandLayout,
        group: dist.ProcessGroup | None,
        inside: dist.ProcessGroup | None,
        count: Count,
        record: Record = lambda *_: nullcontext(),
    ) -> None:
        _check(layout, group, inside)
        self._own = layout == "own"
        self._group = group
        self._inside = inside if inside is not None and inside.size() > 1 else None
        self._count = count
        self._record = record
        size_place = [1, 0] if group is None else [group.size(), group.rank()]
        if self._own:
            told = torch.tensor(size_place, dtype=torch.int64)
            self._count_passing(told.nbytes)
            size_place = self._passed_on(told).tolist()
        self.islands, self.place = size_place
        """How many islands there are, and which of them this is."""

    @property
    def meets(self) -> bool:
        """Whether this rank itself sends to other islands."""
        return self._group is not None

    def vote(self, yes: bool) -> bool:
        """Whether all ranks of the island say yes. They all call it."""
        if self._inside is None:
            return yes
        votes = torch.tensor([int(yes)], dtype=torch.int32)
        sent_bytes = all_reduce_bytes(_VOTE_BYTES, self._inside.size())
        with self._record(_INSIDE, "all_reduce", sent_bytes, self._inside):
            dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=self._inside)
        return bool(votes)

    def gather(self, message: Tensor) -> Tensor:
        """The messages of all islands, one row each; the same length everywhere.

        Raises IslandLostError on all ranks of an island where one of them lost a peer.
        """
        rows = message.new_empty(self.islands, message.numel())
        sent_bytes = message.nbytes * (self.islands - 1)
        lost: RuntimeError | None = None
        if self._group is not None:
            try:
                with self._record("island", "all_gather", sent_bytes, self._group):
                    dist.all_gather(list(rows.unbind()), message, group=self._group)
            except RuntimeError as error:
                lost = error
        if not self.vote(lost is None):
            raise IslandLostError("an island is out of reach") from lost
        return self._passed_on(rows) if self._own else rows

    def spread(self, value: Tensor, source: int) -> None:
        """Give island `source`'s tensor to all islands, in place."""
        if self._group is not None:
            sent_bytes = value.nbytes if self.place == source else 0
            with self._record("island", "broadcast", sent_bytes, self._group):
                dist.broadcast(value, group_src=source, group=self._group)
            if sent_bytes:
                self._count("island", "broadcast", sent_bytes)
        if self._own:
            self._count_passing(value.nbytes)
            self._passed_on(value)

    def count_gather(self, message_bytes: int) -> None:
        """Count what one `gather` makes this rank send."""
        if self.meets:
            self._count("island", "all_gather", message_bytes * (self.islands - 1))
        self.count_vote()
        if self._own:
            self._count_passing(message_bytes * self.islands)

    def count_vote(self) -> None:
        """Count what one `vote` makes this rank send."""
        if self._inside is not None:
            self._count_inside("all_reduce", all_reduce_bytes(_VOTE_BYTES, self._inside.size()))

    def gathering_inside(self, sent_bytes: int) -> AbstractContextManager[None]:
        """Count what this rank sends in a gather inside its island, which is done in there."""
        self._count_inside("all_gather", sent_bytes)
        if self._inside is None or not sent_bytes:
            return nullcontext()
        return self._record(_INSIDE, "all_gather", sent_bytes, self._inside)

    def _count_inside(self, operation: str, sent_bytes: int) -> None:
        if sent_bytes:
            self._count(_INSIDE, operation, sent_bytes)

    def _count_passing(self, payload_bytes: int) -> None:
        if self._inside is not None and self._inside.rank() == 0:
            self._count_inside("broadcast", payload_bytes)

    def _passed_on(self, value: Tensor) -> Tensor:
        """Rank 0's tensor, on all ranks of the island, in place."""
        if self._inside is not None:
            sent_bytes = value.nbytes if self._inside.rank() == 0 else 0
            with self._record(_INSIDE, "broadcast", sent_bytes, self._inside):
                dist.broadcast(value, group_src=0, group=self._inside)
        return value


def _check(
    layout: IslandLayout, group: dist.ProcessGroup | None, inside: dist.ProcessGroup | None
) -> None:
    if layout == "same" and group is None:
        raise ValueError("group=None, but with layout='same' every rank needs a group of islands.")
    first = inside is None or inside.rank() == 0
    if layout == "own" and (group is not None) != first:
        raise ValueError(
            "With layout='own', rank 0 of `inside` alone gets a group of islands, and the others "
            f"group=None; this is rank {0 if inside is None else inside.rank()}."
        )
    for name, one in (("group", group), ("inside", inside)):
        if one is not None and "cpu:" not in dist.get_backend_config(one):
            raise ValueError(
                f"{name} carries no CPU tensors, but what islands exchange rests in host memory. "
                "Make it with dist.new_group(ranks, backend='gloo')."
            )
