"""Carry out one rank's part of a plan over a process group.

In each round a rank posts what it receives, then packs and sends, then checks and unpacks what has
come. Sends of a round end during the next one. A round needs only earlier ones, so ranks cannot
wait for each other in a circle.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from comms.weights.agreement import Deadline, Problem
from comms.weights.plan import Message, Piece, Plan
from comms.weights.wire import DTYPES, DamagedMessageError, Store, message_bytes, pack, seal, unpack

_PAUSE_S = 0.0002


class Group(Protocol):
    """What a transfer needs of a process group, or of one of its backends."""

    def send(self, tensors: list[Tensor], rank: int, tag: int, /) -> dist.Work | None:
        """Start to send one tensor to a rank of the group."""

    def recv(self, tensors: list[Tensor], rank: int, tag: int, /) -> dist.Work | None:
        """Start to receive one tensor from a rank of the group."""


@dataclass(kw_only=True)
class Bill:
    """What one transfer cost one rank."""

    version: int
    sent_bytes: int = 0
    """On the wire, checksums included."""

    passed_on_bytes: int = 0
    """Of these, what other ranks of this host took too."""

    received_bytes: int = 0
    local_bytes: int = 0
    """Copied from this rank's own weights."""

    pack_s: float = 0.0
    """Converting and copying into messages, with their checksums; also what was packed before."""

    wire_s: float = 0.0
    """Waiting for messages to come and go."""

    unpack_s: float = 0.0
    """Verifying, converting and copying out."""

    agree_s: float = 0.0
    """Waiting until all were ready, and until all had everything."""

    total_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Share:
    """One rank's part of a plan."""

    dtypes: Mapping[str, str]
    sends: Sequence[Sequence[Message]]
    """By round."""

    receives: Sequence[Sequence[Message]]
    local: Sequence[Piece]

    @classmethod
    def of(cls, plan: Plan, rank: int) -> "Share":
        """Of `rank`."""
        return cls(
            dtypes=plan.dtypes,
            sends=[[m for m in one if m.sender == rank] for one in plan.rounds],
            receives=[[m for m in one if m.receiver == rank] for one in plan.rounds],
            local=plan.local.get(rank, ()),
        )


class Packed:
    """What a rank gives of its own weights, converted and copied: they may change meanwhile.
    Checksums are left to the thread that sends."""

    def __init__(self, share: Share, own: Store, *, version: int, device: torch.device) -> None:
        started_s = time.perf_counter()
        self.version = version
        self._messages: dict[tuple[int, int], Tensor] = {}
        self.local = [
            own.view(piece).to(DTYPES[share.dtypes[piece.name]], copy=True) for piece in share.local
        ]
        for number, sends in enumerate(share.sends):
            for place, message in enumerate(sends):
                if not message.relayed:
                    data = _buffer(message, device)
                    pack(message, share.dtypes, own.view, version=version, out=data)
                    self._messages[number, place] = data
        self.pack_s = time.perf_counter() - started_s

    def take(self, round_number: int, place: int) -> Tensor | None:
        """A message, once; None for one that is passed on."""
        return self._messages.pop((round_number, place), None)


class Transfer:
    """One version on its way. `own` are the weights that this rank gives, `staged` those that it
    takes; either may be empty. The group must be used by nothing else meanwhile."""

    def __init__(
        self,
        share: Share,
        group: Group,
        *,
        version: int,
        own: Store,
        staged: Store,
        packed: Packed | None,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._share = share
        self._group = group
        self._own = own
        self._staged = staged
        self._packed = packed
        self._device = device
        self._clock = clock
        self.bill = Bill(version=version, pack_s=0.0 if packed is None else packed.pack_s)

    def run(self, deadline: Deadline) -> None:
        """Send and receive everything. Raises Problem; the group cannot be used after that."""
        self._copy_local()
        leaving: list[_Moving] = []
        for number, (sends, receives) in enumerate(
            zip(self._share.sends, self._share.receives, strict=True)
        ):
            places = {message: place for place, message in enumerate(sends)}
            coming, left = [], []
            # One order on all ranks: a backend whose links meet one by one then never deadlocks.
            for message in sorted([*sends, *receives], key=_link):
                if message in places:
                    left.append(self._send(number, places[message], message))
                else:
                    coming.append(self._receive(message))
            for moving in leaving:
                self._wait(moving, moving.message.receiver, deadline)
            leaving = left
            for moving in coming:
                self._wait(moving, moving.message.sender, deadline)
                self._unpack(moving.message, moving.data)
        for moving in leaving:
            self._wait(moving, moving.message.receiver, deadline)

    def _copy_local(self) -> None:
        started_s = self._clock()
        for number, piece in enumerate(self._share.local):
            own = self._own.view(piece) if self._packed is None else self._packed.local[number]
            for target in self._staged.views(piece):
                target.copy_(own)
                self.bill.local_bytes += target.nbytes
        self.bill.unpack_s += self._clock() - started_s

    def _receive(self, message: Message) -> "_Moving":
        data = _buffer(message, self._device)
        with _Blaming(message.sender):
            return _Moving(message, data, self._group.recv([data], message.sender, 0))

    def _send(self, number: int, place: int, message: Message) -> "_Moving":
        started_s = self._clock()
        data = None if self._packed is None else self._packed.take(number, place)
        if data is None:
            data = _buffer(message, self._device)
            view = (self._staged if message.relayed else self._own).view
            pack(message, self._share.dtypes, view, version=self.bill.version, out=data)
        seal(data)
        self.bill.pack_s += self._clock() - started_s
        self.bill.sent_bytes += data.nbytes
        self.bill.passed_on_bytes += data.nbytes if message.relayed else 0
        with _Blaming(message.receiver):
            return _Moving(message, data, self._group.send([data], message.receiver, 0))

    def _wait(self, moving: "_Moving", peer: int, deadline: Deadline) -> None:
        started_s = self._clock()
        with _Blaming(peer):
            while moving.data.is_cuda and moving.work is not None and deadline.left_s > 0.0:
                # On a device `wait` makes the stream wait, not this thread.
                if moving.work.is_completed():
                    break
                time.sleep(_PAUSE_S)
            if moving.work is not None:
                moving.work.wait(timedelta(milliseconds=max(1, round(1000 * deadline.left_s))))
        self.bill.wire_s += self._clock() - started_s

    def _unpack(self, message: Message, data: Tensor) -> None:
        started_s = self._clock()
        try:
            unpack(
                message,
                self._share.dtypes,
                self._staged.views,
                version=self.bill.version,
                data=data,
            )
        except DamagedMessageError as error:
            raise Problem(str(error), blames=message.sender) from error
        self.bill.received_bytes += data.nbytes
        self.bill.unpack_s += self._clock() - started_s


class _Moving(NamedTuple):
    """A message under way."""

    message: Message
    data: Tensor
    work: dist.Work | None


def _link(message: Message) -> tuple[int, int, int, bool]:
    sender, receiver = message.sender, message.receiver
    return min(sender, receiver), max(sender, receiver), sender, message.relayed


class _Blaming:
    """An error of the group inside is a problem with `peer`."""

    def __init__(self, peer: int) -> None:
        self._peer = peer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            raise Problem(f"lost rank {self._peer} ({reason(error)})", blames=self._peer) from error


def _buffer(message: Message, device: torch.device) -> Tensor:
    return torch.empty(message_bytes(message.payload_bytes), dtype=torch.uint8, device=device)


def reason(error: RuntimeError) -> str:
    """What a group says of a failure, without its place in the source and its general advice."""
    first = str(error).split("\n", 1)[0]
    return re.sub(r"^\[[^]]*\.cc:\d+\] ", "", first).split(". This is typically")[0] or repr(error)
