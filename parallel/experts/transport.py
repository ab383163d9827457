"""Rows of one layer on their way to the ranks that hold their experts, and home again.

R rows of this rank, S rows that arrive here, D their width, V slots over all ranks.

No autograd in here: the gradient of the way out is the way home, and the other way round.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from comms.ledger import Ledger
from comms.telemetry.recorder import UNRECORDED
from parallel.experts.route import (
    Hosts,
    Regroup,
    RowPlan,
    direct_plan,
    staged_plan,
    transposed,
)


@dataclass(frozen=True, kw_only=True)
class HostGroups:
    """The two stages of an expert group over several hosts, or over groups of hosts."""

    inside: dist.ProcessGroup
    """The ranks of this host, in order."""

    between: dist.ProcessGroup
    """The ranks with this rank's place in its host, in order."""

    hosts: Hosts
    """Which places of the expert group are together."""


class Lane:
    """All-to-all exchanges over one group, counted as `ep/<operation>`."""

    def __init__(self, group: dist.ProcessGroup, ledger: Ledger, operation: str) -> None:
        self.ranks = group.size()
        self.rank = group.rank()
        self._group = group
        self._ledger = ledger
        self._operation = operation

    def begin(
        self, rows: Tensor, sent: Sequence[int], received: Sequence[int], suffix: str = ""
    ) -> "Flight":
        """Send `sent[i]` rows to rank i; all ranks of the group call it, also with no rows."""
        if self.ranks == 1:
            return Flight(rows, rows, None, self._ledger, UNRECORDED)
        rows = rows.contiguous()
        arriving = rows.new_empty((sum(received), *rows.shape[1:]))
        row_bytes = prod(rows.shape[1:]) * rows.element_size()
        others = sum(sent) - sent[self.rank]
        operation = self._operation + suffix
        token = self._ledger.begin("ep", operation, others * row_bytes, self._group)
        # As bytes: not every backend exchanges every dtype.
        work = dist.all_to_all_single(
            _as_bytes(arriving),
            _as_bytes(rows),
            output_split_sizes=list(received),
            input_split_sizes=list(sent),
            group=self._group,
            async_op=True,
        )
        return Flight(arriving, rows, work, self._ledger, token)


def _as_bytes(rows: Tensor) -> Tensor:
    return (rows.unsqueeze(1) if rows.ndim == 1 else rows).view(torch.uint8)


class Flight:
    """Rows under way."""

    def __init__(
        self,
        arriving: Tensor,
        leaving: Tensor,
        work: dist.Work | None,
        ledger: Ledger,
        token: int,
    ) -> None:
        self._arriving = arriving
        # Kept until the exchange is over: it is read meanwhile.
        self._leaving: Tensor | None = leaving
        self._work = work
        self._ledger = ledger
        self._token = token

    def wait(self) -> Tensor:
        """The rows, which are there when it returns (on CUDA: for what is queued after it)."""
        if self._work is not None:
            with self._ledger.waiting(self._token):
                self._work.wait()
        self._work = self._leaving = None
        return self._arriving


class RowOrder(Protocol):
    """How rows are sorted before they leave, where it is not by slots of all ranks."""

    def regroup(self, counts_V: Sequence[int]) -> Regroup:
        """To rows sorted by slots of all ranks."""


def _from(order: RowOrder | None, plan: RowPlan, counts_V: Sequence[int]) -> RowPlan:
    return plan if order is None else replace(plan, first=order.regroup(counts_V))


class Announcement(Protocol):
    """Counts under way."""

    def plan(self) -> RowPlan:
        """Wait for the counts, and read them on the host."""


class Announced:
    """Counts told directly to every rank."""

    def __init__(
        self, lane: Lane, counts_V: Tensor, slots: Sequence[int], order: RowOrder | None = None
    ) -> None:
        self._slots = slots
        self._order = order
        self._counts_V = counts_V
        own = [slots[lane.rank]] * lane.ranks
        self._flight = lane.begin(counts_V, slots, own, "_counts")

    def plan(self) -> RowPlan:
        """Wait for the counts, and read them on the host, once for all."""
        counts = torch.cat([self._counts_V, self._flight.wait()]).tolist()
        total = self._counts_V.numel()
        plan = direct_plan(counts[:total], counts[total:], self._slots)
        return _from(self._order, plan, counts[:total])


class StagedAnnounced:
    """Counts told inside the host first, then between hosts."""

    def __init__(
        self,
        inside: Lane,
        between: Lane,
        hosts: Hosts,
        counts_V: Tensor,
        slots: Sequence[int],
        order: RowOrder | None = None,
    ) -> None:
        self._slots, self._counts_V, self._order = slots, counts_V, order
        self._hosts, self._local = hosts, inside.rank
        count, ranks = between.ranks, inside.ranks
        places = [[slots[rank] for rank in hosts.place(local)] for local in range(ranks)]
        own = places[inside.rank]
        leaving = Regroup(tuple(slots), hosts.by_place).apply(counts_V)
        sent = [sum(place) for place in places]
        gathered = inside.begin(leaving, sent, [sum(own)] * ranks, "_counts").wait()
        self._gathered = gathered
        by_host = Regroup(tuple(own * ranks), transposed(ranks, count)).apply(gathered)
        arriving = [ranks * own[between.rank]] * count
        self._flight = between.begin(by_host, [ranks * n for n in own], arriving, "_counts")

    def plan(self) -> RowPlan:
        """Wait for the counts, and read them on the host, once for all."""
        parts = [self._counts_V, self._gathered, self._flight.wait()]
        counts = torch.cat(parts).tolist()
        first = parts[0].numel()
        second = first + parts[1].numel()
        plan = staged_plan(
            counts[:first],
            counts[first:second],
            counts[second:],
            self._slots,
            hosts=self._hosts,
            local=self._local,
        )
        return _from(self._order, plan, counts[:first])


class Transport:
    """One layer's rows, out and home, over the lanes of a plan.

    Every `begin` is followed by its `end` before the next `begin`. The last lane, which is the
    slowest, works between the two; the others inside them.
    """

    def __init__(self, lanes: Sequence[Lane], plan: RowPlan) -> None:
        self._lanes = lanes
        self.plan = plan
        self._flight: Flight | None = None

    def begin_out(self, x_RD: Tensor) -> None:
        """Rows leave for their experts."""
        x_RD = self.plan.first.apply(x_RD)
        for lane, hop in zip(self._lanes, self.plan.hops, strict=True):
            if self._flight is not None:
                x_RD = self._flight.wait()
            self._flight = lane.begin(hop.before.apply(x_RD), hop.sent, hop.received)

    def end_out(self) -> Tensor:
        """[S, D], sorted by slot."""
        return self.plan.final.apply(self._landed())

    def begin_home(self, y_SD: Tensor) -> None:
        """Rows leave for where they came from."""
        lane, hop = self._lanes[-1], self.plan.hops[-1]
        self._flight = lane.begin(self.plan.final.inverse(y_SD), hop.received, hop.sent)

    def end_home(self) -> Tensor:
        """[R, D] in the order in which rows left."""
        y = self.plan.hops[-1].before.inverse(self._landed())
        for lane, hop in reversed(list(zip(self._lanes[:-1], self.plan.hops[:-1], strict=True))):
            y = hop.before.inverse(lane.begin(y, hop.received, hop.sent).wait())
        return self.plan.first.inverse(y)

    def _landed(self) -> Tensor:
        assert self._flight is not None, "nothing is under way"
        flight, self._flight = self._flight, None
        return flight.wait()
