"""Versions of weights from the ranks that train to the ranks that sample, rank to rank.

On a rank that trains, with `store` a TCPStore client of the channel's own:

    channel = WeightChannel.open(Meeting(store, rank, names), Member(host=..., gives=parts))
    channel.publish(version, {name: [local_part]}, deadline_s=60)

On a rank that samples, between two steps of decoding, or in a thread beside them:

    channel = WeightChannel.open(Meeting(store, rank, names), Member(host=..., takes=parts))
    if channel.announced():
        update = channel.subscribe(deadline_s=60)
        engine.load(update.version, update.whole())

Guarantees, each asserted in tests/comms/weights/test_channel.py:
- what arrives is bitwise what the trainers gave, converted, whatever the layouts of both sides;
- bytes received over the hosts' borders are those of the weights once per host that samples, and
  the checksums;
- where a rank dies, hangs, damages a message or brings other weights, every other rank's call ends
  within the deadline and a grace, with an error that names it; no rank takes the version;
- after that a channel of the ranks that are left works, with the same tensors;
- a channel that is abandoned ends at once for all that wait in it, also for a rank that is gone,
  and also while it is opened;
- packed weights arrive as they were when they were packed.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from comms.weights.agreement import (
    Agreement,
    Deadline,
    Problem,
    WeightTransferError,
    decide_against,
)
from comms.weights.codec import member_text, read_share
from comms.weights.meeting import Meeting, connect, plan_for_all
from comms.weights.plan import Member, Part
from comms.weights.transfer import Bill, Group, Packed, Share, Transfer, reason
from comms.weights.wire import DTYPES, Store

Tensors = Mapping[str, Sequence[Tensor]]
"""By name, one for each block that the rank gave or takes, in the same order."""

_NONE = Store({}, {})

_NO_VERSION = -1

_OPENING = ("met", "planned", "connected")
"""What is decided, in this order, to open a channel."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """A version that all ranks have. Its tensors are used again from the next transfer on."""

    version: int
    tensors: Tensors
    bill: Bill

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, where this rank takes one block of each."""
        for name, (tensor,) in self.tensors.items():
            yield name, tensor


class WeightChannel:
    """One membership's transfers, one at a time. All ranks call in the same order."""

    def __init__(
        self,
        meeting: Meeting,
        member: Member,
        share: Share,
        group: Group,
        agreement: Agreement,
        *,
        device: torch.device,
    ) -> None:
        self._store = dist.PrefixStore(meeting.prefix, meeting.store)
        self._rank = meeting.rank
        self._member = member
        self._share = share
        self._group: Group | None = group
        self._agreement = agreement
        self._device = device
        self._staged = _staging(member.takes, device)
        self._transfers = 0

    @classmethod
    def open(
        cls,
        meeting: Meeting,
        member: Member,
        *,
        deadline_s: float = 60.0,
        bucket_bytes: int = 64 << 20,
        device: torch.device | None = None,
        group: Group | None = None,
    ) -> "WeightChannel":
        """Meet, agree on the transfers and connect. All ranks call it.

        Messages and what is taken are on `device`, which `group` must carry; without a group, one
        of gloo is made, for CPU. Up to two rounds of `bucket_bytes` are in memory on each side.

        Raises WeightTransferError on every rank where one is missing, cannot connect, or brings
        weights that do not fit.
        """
        deadline = Deadline(deadline_s)
        store = dist.PrefixStore(meeting.prefix, meeting.store)
        agreement = Agreement(store, rank=meeting.rank, names=meeting.names)
        what = "the channel for weights was not opened"
        store.set(f"member/{meeting.rank}", member_text(member))
        met, planned, connected = _OPENING
        agreement.settle(met, None, deadline, what=what)
        agreement.settle(planned, plan_for_all(store, meeting, bucket_bytes), deadline, what=what)
        share = Share.of(read_share(store.get(f"share/{meeting.rank}"), meeting.rank), meeting.rank)
        problem = None
        if group is None:
            try:
                group = connect(store, meeting.rank, len(meeting.names), deadline)
            except RuntimeError as error:
                problem = Problem(reason(error), blames=meeting.rank)
        agreement.settle(connected, problem, deadline, what=what)
        assert group is not None
        return cls(meeting, member, share, group, agreement, device=device or torch.device("cpu"))

    @property
    def usable(self) -> bool:
        """False after a failed transfer; open another one then, with the ranks that are left."""
        return self._group is not None

    def pack(self, version: int, tensors: Tensors) -> Packed:
        """Convert and copy what this rank gives, so that it may change while it is published.

        Raises ValueError where the tensors are not those that the channel was opened with.
        """
        own = Store(_blocks(self._member.gives), tensors)
        return Packed(self._share, own, version=version, device=self._device)

    def publish(self, version: int, weights: Tensors | Packed, *, deadline_s: float) -> Bill:
        """Give a version to all that subscribe; on ranks that only give. Returns once all have it.

        Raises WeightTransferError where not all have it; then none has.
        """
        return self._exchange(version, weights, deadline_s).bill

    def announced(self) -> bool:
        """Whether rank 0 offers a version that this rank has not answered. Does not wait.

        Raises `torch.distributed.DistError` where the store is out of reach.
        """
        return self._store.check([f"{self._transfers}/version"])

    def subscribe(self, *, deadline_s: float) -> Update:
        """The version that is offered, or will be before the deadline; on ranks that only take.

        Raises WeightTransferError where not all ranks have it; what a rank samples with is
        untouched.
        """
        return self._exchange(None, None, deadline_s)

    def exchange(self, version: int, weights: Tensors | Packed, *, deadline_s: float) -> Update:
        """Give and take a version, on ranks that do both."""
        return self._exchange(version, weights, deadline_s)

    def close(self) -> None:
        """Disconnect; any rank, at any time."""
        self._group = None

    def _exchange(
        self, version: int | None, weights: Tensors | Packed | None, deadline_s: float
    ) -> Update:
        if self._group is None:
            raise RuntimeError(
                "the channel is closed, by `close` or by a failed transfer; open another one"
            )
        started_s, deadline = time.perf_counter(), Deadline(deadline_s)
        subject = str(self._transfers)
        self._transfers += 1
        own, problem = self._given(weights)
        version, problem = self._version(subject, version, problem, deadline)
        what = f"version {version} of the weights was not taken by anyone"
        self._agreement.settle(f"{subject}/ready", problem, deadline, what=what)
        ready_s = time.perf_counter()
        if self._rank == 0 and self._transfers > 1:
            # All take part in this transfer, so all know how the last one ended.
            self._forget(self._transfers - 2)
        bill, problem = self._move(subject, version, own, weights, deadline)
        moved_s = time.perf_counter()
        try:
            self._agreement.settle(f"{subject}/arrived", problem, deadline, what=what)
        except WeightTransferError:
            self.close()
            raise
        ended_s = time.perf_counter()
        bill.agree_s = ready_s - started_s + ended_s - moved_s
        bill.total_s = ended_s - started_s
        return Update(version=version, tensors=self._staged, bill=bill)

    def _forget(self, number: int) -> None:
        self._agreement.forget(f"{number}/ready")
        self._agreement.forget(f"{number}/arrived")
        self._store.delete_key(f"{number}/version")

    def _given(self, weights: Tensors | Packed | None) -> tuple[Store, Problem | None]:
        if weights is None or isinstance(weights, Packed):
            return _NONE, None
        try:
            return Store(_blocks(self._member.gives), weights), None
        except ValueError as error:
            return _NONE, Problem(str(error), blames=self._rank)

    def _version(
        self, subject: str, version: int | None, problem: Problem | None, deadline: Deadline
    ) -> tuple[int, Problem | None]:
        """Rank 0's version, and what stops this rank from taking part."""
        key = f"{subject}/version"
        if self._rank == 0 and version is not None:
            self._store.set(key, str(version))
            return version, problem
        try:
            self._store.wait([key], timedelta(milliseconds=max(1, 1000 * deadline.left_s)))
            offered = int(self._store.get(key))
        except dist.DistError as error:
            return _NO_VERSION, Problem(f"rank 0 offered no version ({error})", blames=0)
        if version not in (None, offered):
            text = f"it gives version {version}, and rank 0 version {offered}"
            problem = problem or Problem(text, blames=self._rank)
        return offered, problem

    def _move(
        self,
        subject: str,
        version: int,
        own: Store,
        weights: Tensors | Packed | None,
        deadline: Deadline,
    ) -> tuple[Bill, Problem | None]:
        """On failure nothing of the group is left here: that its sockets close tells the others."""
        assert self._group is not None
        transfer = Transfer(
            self._share,
            self._group,
            version=version,
            own=own,
            staged=Store(_blocks(self._member.takes), self._staged),
            packed=weights if isinstance(weights, Packed) else None,
            device=self._device,
        )
        try:
            transfer.run(deadline)
        except Problem as problem:
            self._agreement.refuse(f"{subject}/arrived", problem)
            self.close()
            return transfer.bill, Problem(str(problem), blames=problem.blames)
        return transfer.bill, None


def abandon(store: dist.Store, prefix: str, *, transfers: int, reason: str) -> None:
    """End what the ranks of a channel wait for, so that they can meet in another: for a thread
    beside the one that transfers, with a store client that nothing else uses.

    `transfers` is how many the channel has begun. That one fails on all ranks unless all have
    everything already, and so does the next; ranks that are sending finish or fail with that first.
    A channel that is not open yet is not opened; ranks that are connecting find that out after it.
    """
    own = dist.PrefixStore(prefix, store)
    for subject in _OPENING:
        decide_against(own, subject, reason)
    for number in range(max(0, transfers - 1), transfers + 1):
        decide_against(own, f"{number}/ready", reason)
        decide_against(own, f"{number}/arrived", reason)
        # Ranks may be waiting for rank 0 to offer one.
        own.compare_set(f"{number}/version", "", str(_NO_VERSION))


def _blocks(parts: Mapping[str, Part]) -> dict[str, Sequence]:
    return {name: part.blocks for name, part in parts.items()}


def _staging(takes: Mapping[str, Part], device: torch.device) -> dict[str, list[Tensor]]:
    """Room for a version beside the one in use."""
    return {
        name: [
            torch.empty(block.shape, dtype=DTYPES[part.dtype], device=device)
            for block in part.blocks
        ]
        for name, part in takes.items()
    }
