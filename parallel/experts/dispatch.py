"""Dropless dispatch of tokens to experts that are spread over ranks.

R rows (token and expert pairs) of this rank, S rows that arrive here, E experts of all ranks, D row
width, V slots over all ranks, v of this rank.

Rank e of an expert group of p holds experts [e E/p, (e+1) E/p). Rows travel by all-to-all, either
directly or in two stages, inside hosts and then between them, which sends fewer and larger messages
over the slow links (DeepSpeed-MoE, arXiv 2201.05596, section 5.3). Exchanges are unconditional: a
rank without rows takes part in all of them, so none can hang.

Guarantees, each asserted in tests/parallel/experts/test_dispatch.py:
- no row is dropped; outputs and gradients equal those of one rank with all tokens and all experts,
  bitwise where the experts' matrix products are the same;
- one stage and two give bitwise the same;
- bytes counted are those of the rows that go to other ranks, exactly.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from comms.ledger import Ledger
from parallel.experts.loans import Lent, Loans
from parallel.experts.placement import Placement
from parallel.experts.route import Hosts
from parallel.experts.transport import (
    Announced,
    Announcement,
    HostGroups,
    Lane,
    StagedAnnounced,
    Transport,
)
from parallel.layout import divisors


class Trip(Protocol):
    """Rows of one layer, out to their experts and home. Each method once, in this order.

    Between `send` and `receive`, and between `send_back` and `receive_back`, rows are under way:
    what is computed there costs no waiting, in forward and in backward.
    """

    def send(self, x_RD: Tensor) -> None:
        """Let rows leave, sorted by slot."""

    def receive(self) -> tuple[Tensor, Tensor]:
        """Rows [S, D] for this rank's slots, sorted by slot, and int64 counts [v] of them."""

    def send_back(self, y_SD: Tensor) -> None:
        """Let results leave, in the order in which rows were received."""

    def receive_back(self) -> Tensor:
        """Results [R, D], in the order in which rows were sent."""


class Exchange(Protocol):
    """How rows find their experts."""

    def open(self, counts_V: Tensor) -> Trip:
        """Say how many rows there are for every slot (int64)."""

    def weights(self, stacked: Tensor) -> Tensor:
        """What rows that `receive` returns meet: this rank's stacked weights, and copies of others
        that it has on loan. Gradients of copies go home to their owners."""


class _StayTrip:
    """All experts are here: rows do not travel."""

    def __init__(self, counts_V: Tensor) -> None:
        self._counts_V = counts_V
        self._rows = counts_V

    def send(self, x_RD: Tensor) -> None:
        self._rows = x_RD

    def receive(self) -> tuple[Tensor, Tensor]:
        return self._rows, self._counts_V

    def send_back(self, y_SD: Tensor) -> None:
        self._rows = y_SD

    def receive_back(self) -> Tensor:
        return self._rows


class Stay:
    """The `Exchange` of a rank that holds all experts."""

    def open(self, counts_V: Tensor) -> Trip:
        """Rows that stay where they are."""
        return _StayTrip(counts_V)

    def weights(self, stacked: Tensor) -> Tensor:
        """All of them."""
        return stacked


def _check(ranks: int, num_experts: int, hosts: HostGroups | None) -> None:
    if num_experts % ranks:
        raise ValueError(
            f"ep={ranks} does not divide num_experts={num_experts}; choose one of "
            f"{divisors(num_experts)}"
        )
    if hosts is not None and hosts.inside.size() * hosts.between.size() != ranks:
        raise ValueError(
            f"{hosts.between.size()} hosts of {hosts.inside.size()} ranks are not the "
            f"{ranks} ranks of the expert group; make them with host_groups"
        )


class ExpertDispatch:
    """The `Exchange` over the ranks of `group`, `num_experts` spread evenly in their order.

    Usable with any experts that take rows sorted by expert and their counts:

        dispatch = ExpertDispatch(group, num_experts=64, ledger=Ledger())
        y_RD = dispatch.run(x_RD, counts_E, my_local_experts)

    With `hosts`, rows travel in two stages. Raises ValueError where the experts cannot be spread
    evenly, or the groups of `hosts` are not those of as many ranks.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        *,
        num_experts: int,
        ledger: Ledger,
        hosts: HostGroups | None = None,
    ) -> None:
        ranks = self.ranks = group.size()
        self.group = group
        self.ledger = ledger
        self._num_experts = num_experts
        self._slots = (num_experts // ranks,) * ranks
        self._weight_lane = Lane(group, ledger, "lend_experts")
        self._loans: Loans | None = None
        self._lanes: list[Lane] = []
        self._hosts: Hosts | None = None
        self.travel(hosts)

    def travel(self, hosts: HostGroups | None) -> None:
        """From now on, let rows travel in the two stages of `hosts`, or directly. All ranks of the
        group call it alike, between two steps; results stay bitwise the same."""
        _check(self.ranks, self._num_experts, hosts)
        group, ledger = self.group, self.ledger
        if hosts is None or 1 in (hosts.inside.size(), hosts.between.size()):
            self._lanes, self._hosts = [Lane(group, ledger, "all_to_all")], None
        else:
            self._lanes = [
                Lane(hosts.inside, ledger, "all_to_all_inside_hosts"),
                Lane(hosts.between, ledger, "all_to_all_between_hosts"),
            ]
            self._hosts = hosts.hosts

    @torch.compiler.disable
    def open(self, counts_V: Tensor) -> Trip:
        """Tell the other ranks how many rows come. All ranks call it, also with none."""
        loans = self._loans
        slots = self._slots if loans is None else loans.slots
        counts_V = counts_V if loans is None else loans.split(counts_V)
        announced: Announcement
        if self._hosts is None:
            announced = Announced(self._lanes[0], counts_V, slots, loans)
        else:
            inside, between = self._lanes
            announced = StagedAnnounced(inside, between, self._hosts, counts_V, slots, loans)
        return _SentTrip(self._lanes, announced, counts_V.device)

    @torch.compiler.disable
    def weights(self, stacked: Tensor) -> Tensor:
        """This rank's own, and the copies that `lend` says."""
        if self._loans is None:
            return stacked
        return Lent.apply(stacked, self._loans, self._weight_lane)

    def lend(self, placement: Placement) -> None:
        """From now on, lend experts as `placement` says. All ranks of the group call it alike,
        between two steps. Raises ValueError for a placement over another number of ranks."""
        if placement.ranks != self.ranks:
            raise ValueError(
                f"a placement over {placement.ranks} ranks does not fit an expert group of "
                f"{self.ranks}; make one for that many"
            )
        self._loans = Loans(placement, self._weight_lane.rank) if placement.loans else None

    def run(
        self, x_RD: Tensor, counts_E: Tensor, experts: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Send rows sorted by expert, apply `experts(x_SD, counts_v)`, bring results [R, D] home.

        All ranks of the group call it, also with no rows, and its backward if one of them does.
        """
        trip = self.open(counts_E)
        trip.send(x_RD)
        trip.send_back(experts(*trip.receive()))
        return trip.receive_back()


class _SentTrip:
    """Rows that travel. Compiled graphs end around it: their shapes are known only on arrival."""

    def __init__(
        self, lanes: Sequence[Lane], announced: Announcement, device: torch.device
    ) -> None:
        self._lanes = lanes
        self._announced = announced
        self._device = device
        self._transport: Transport | None = None
        self._token = torch.empty(0)

    @torch.compiler.disable
    def send(self, x_RD: Tensor) -> None:
        self._transport = Transport(self._lanes, self._announced.plan())
        self._token = _Send.apply(x_RD, self._transport)

    @torch.compiler.disable
    def receive(self) -> tuple[Tensor, Tensor]:
        assert self._transport is not None
        counts = torch.tensor(self._transport.plan.slot_rows, dtype=torch.int64)
        rows = _Receive.apply(self._token, self._transport)
        return rows, counts.to(self._device, non_blocking=True)

    @torch.compiler.disable
    def send_back(self, y_SD: Tensor) -> None:
        self._token = _SendBack.apply(y_SD, self._transport)

    @torch.compiler.disable
    def receive_back(self) -> Tensor:
        return _ReceiveBack.apply(self._token, self._transport)


# Each function begins or ends one way; its backward ends or begins the other. Autograd runs first
# what was computed last: what forward computes while rows travel is computed again while their
# gradients do. Rows travel outside the graph; a token, which nobody reads, keeps the order.
class _Send(Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, transport: Transport) -> Tensor:
        ctx.transport = transport
        transport.begin_out(x_RD)
        return x_RD.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.transport.end_home(), None


class _Receive(Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, transport: Transport) -> Tensor:
        ctx.transport = transport
        return transport.end_out()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None]:
        ctx.transport.begin_home(grad_SD)
        return grad_SD.new_zeros(()), None


class _SendBack(Function):
    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, transport: Transport) -> Tensor:
        ctx.transport = transport
        transport.begin_home(y_SD)
        return y_SD.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.transport.end_out(), None


class _ReceiveBack(Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, transport: Transport) -> Tensor:
        ctx.transport = transport
        return transport.end_home()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None]:
        ctx.transport.begin_out(grad_RD)
        return grad_RD.new_zeros(()), None
