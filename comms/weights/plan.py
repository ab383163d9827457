"""Pure: which rank sends which part of which weight to whom, and when.

Guarantees, each asserted in tests/comms/weights/test_plan.py:
- every element that is taken arrives once at each rank that takes it;
- every element crosses into a host at most once, and not at all where a rank of that host gives
  it; what more ranks of the host take is passed on inside it;
- ranks that give the same elements share the sending: no rank sends more than an even share and
  one piece, where all of them give all;
- no rank sends, or receives, more than `bucket_bytes` in a round, and what is passed on has
  arrived in an earlier round;
- a tensor that nobody gives whole, or of which two ranks have different ideas, is refused.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from comms.weights.blocks import Block, regions, split

ITEM_BYTES = {
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
"""Bytes of an element, by the name of its dtype."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank gives, or takes, of one tensor."""

    shape: tuple[int, ...]
    """Of the whole tensor."""

    dtype: str
    """As the rank has it. On the way a tensor has the takers' dtype."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A rank of a channel. One that trains gives, one that samples takes, and one may do both."""

    host: str
    gives: Mapping[str, Part] = field(default_factory=dict)
    takes: Mapping[str, Part] = field(default_factory=dict)


class Piece(NamedTuple):
    """A block of a tensor on its way."""

    name: str
    block: Block
    relayed: bool
    """Whether the sender has it from another rank, in this same transfer."""


class Message(NamedTuple):
    """What goes from one rank to another in a round: pieces that are all relayed, or none."""

    sender: int
    receiver: int
    pieces: tuple[Piece, ...]
    payload_bytes: int

    @property
    def relayed(self) -> bool:
        """Whether the sender passes on what it has received."""
        return self.pieces[0].relayed


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every transfer of one version."""

    dtypes: Mapping[str, str]
    """On the way, by tensor."""

    rounds: tuple[tuple[Message, ...], ...]
    local: Mapping[int, tuple[Piece, ...]]
    """Pieces that a rank both gives and takes, by rank."""

    def bytes_into(self, hosts: Sequence[str]) -> dict[str, int]:
        """Bytes that cross into each host; `hosts` has the host of each rank."""
        crossing: defaultdict[str, int] = defaultdict(int)
        for message in (message for one in self.rounds for message in one):
            if hosts[message.sender] != hosts[message.receiver]:
                crossing[hosts[message.receiver]] += message.payload_bytes
        return dict(crossing)


class _Transfer(NamedTuple):
    """A piece, its way, and the place in the list of the transfer that must come before."""

    piece: Piece
    sender: int
    receiver: int
    payload_bytes: int
    after: int | None


class _Load:
    """Bytes that ranks and hosts have been given to send and receive."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts
        self._sent: defaultdict[int | str, int] = defaultdict(int)
        self._received: defaultdict[int, int] = defaultdict(int)

    def sender(self, ranks: Iterable[int]) -> int:
        """The rank that has least to send on the host that has least to send."""
        return min(ranks, key=lambda r: (self._sent[self._hosts[r]], self._sent[r], r))

    def receiver(self, ranks: Iterable[int]) -> int:
        """The rank that has least to receive and to pass on."""
        return min(ranks, key=lambda r: (self._received[r] + self._sent[r], r))

    def add(self, sender: int, receiver: int, payload_bytes: int) -> None:
        """Count a transfer."""
        self._sent[sender] += payload_bytes
        self._received[receiver] += payload_bytes
        if self._hosts[sender] != self._hosts[receiver]:
            self._sent[self._hosts[sender]] += payload_bytes


def plan(members: Sequence[Member], *, bucket_bytes: int) -> Plan:
    """How the weights that `members` give reach those that take them.

    Raises ValueError for a tensor that is not given whole where it is taken, or whose shape or
    dtype differs between ranks.
    """
    if bucket_bytes < 8:
        raise ValueError(f"bucket_bytes={bucket_bytes} must hold an element; give at least 8")
    names = sorted({name for member in members for name in member.takes})
    dtypes = {name: _dtype(name, members) for name in names}
    items = [
        (block, name, givers, takers)
        for name in names
        for block, givers, takers in _parts(name, members, bucket_bytes // ITEM_BYTES[dtypes[name]])
    ]
    # The largest first: greedy sharing then ends near even.
    items.sort(key=lambda item: (-item[0].elements * ITEM_BYTES[dtypes[item[1]]], item[1], item[0]))
    hosts = [member.host for member in members]
    load = _Load(hosts)
    local: defaultdict[int, list[Piece]] = defaultdict(list)
    transfers: list[_Transfer] = []
    for block, name, givers, takers in items:
        size = block.elements * ITEM_BYTES[dtypes[name]]
        for rank in takers:
            if rank in givers:
                local[rank].append(Piece(name, block, False))
        wanting = [rank for rank in takers if rank not in givers]
        for host in dict.fromkeys(hosts[rank] for rank in wanting):
            here = [rank for rank in wanting if hosts[rank] == host]
            near = [rank for rank in givers if hosts[rank] == host]
            _route(transfers, load, Piece(name, block, False), size, here, near, givers)
    return Plan(
        dtypes=dtypes,
        rounds=_rounds(transfers, dtypes, bucket_bytes),
        local={rank: tuple(pieces) for rank, pieces in local.items()},
    )


def _dtype(name: str, members: Sequence[Member]) -> str:
    parts = [m.takes[name] for m in members if name in m.takes]
    parts_given = [m.gives[name] for m in members if name in m.gives]
    shapes = {part.shape for part in parts + parts_given}
    if len(shapes) > 1:
        raise ValueError(
            f"weight {name} has the shapes {sorted(shapes)} on different ranks; channels join "
            "ranks of the same architecture"
        )
    dtypes = {part.dtype for part in parts}
    if len(dtypes) > 1 or not dtypes <= ITEM_BYTES.keys():
        raise ValueError(
            f"weight {name} is taken as {', '.join(sorted(dtypes))}; ranks that take it must agree "
            f"on one of {', '.join(ITEM_BYTES)}"
        )
    return parts[0].dtype


def _parts(
    name: str, members: Sequence[Member], most_elements: int
) -> Iterable[tuple[Block, tuple[int, ...], tuple[int, ...]]]:
    gives = {r: m.gives[name].blocks for r, m in enumerate(members) if name in m.gives}
    takes = {r: m.takes[name].blocks for r, m in enumerate(members) if name in m.takes}
    for region in regions(gives, takes):
        if not region.givers:
            raise ValueError(
                f"weight {name}: rank {region.takers[0]} takes the block at "
                f"{list(region.block.offsets)} of shape {list(region.block.shape)}, which no rank "
                "gives; every part of it must be given by some rank"
            )
        for block in split(region.block, most_elements):
            yield block, region.givers, region.takers


def _route(
    transfers: list[_Transfer],
    load: _Load,
    piece: Piece,
    size: int,
    here: Sequence[int],
    near: Sequence[int],
    givers: Sequence[int],
) -> None:
    """Bring one piece to the ranks `here`, all of one host, `near` being the givers on it."""
    after: int | None = None
    if not near:
        sender, entry = load.sender(givers), load.receiver(here)
        load.add(sender, entry, size)
        transfers.append(_Transfer(piece, sender, entry, size, None))
        here = [rank for rank in here if rank != entry]
        after, piece = len(transfers) - 1, piece._replace(relayed=True)
        near = [entry]
    for receiver in here:
        sender = load.sender(near)
        load.add(sender, receiver, size)
        transfers.append(_Transfer(piece, sender, receiver, size, after))


def _rounds(
    transfers: Sequence[_Transfer], dtypes: Mapping[str, str], bucket_bytes: int
) -> tuple[tuple[Message, ...], ...]:
    """Each transfer in the first round that has room on both sides."""
    sent: defaultdict[tuple[int, int], int] = defaultdict(int)
    received: defaultdict[tuple[int, int], int] = defaultdict(int)
    placed: list[int] = []
    links: defaultdict[tuple[int, int, int, bool], list[_Transfer]] = defaultdict(list)
    for one in transfers:
        at = 0 if one.after is None else placed[one.after] + 1
        while (
            max(sent[one.sender, at], received[one.receiver, at]) + one.payload_bytes > bucket_bytes
        ):
            at += 1
        sent[one.sender, at] += one.payload_bytes
        received[one.receiver, at] += one.payload_bytes
        placed.append(at)
        links[at, one.sender, one.receiver, one.piece.relayed].append(one)
    rounds: list[list[Message]] = [[] for _ in range(max(placed, default=-1) + 1)]
    for (at, sender, receiver, _), found in sorted(links.items()):
        pieces = [one.piece for one in found]
        # Wide elements first: all are then aligned in the message, without gaps.
        pieces.sort(key=lambda piece: (-ITEM_BYTES[dtypes[piece.name]], piece))
        size = sum(one.payload_bytes for one in found)
        rounds[at].append(Message(sender, receiver, tuple(pieces), size))
    return tuple(map(tuple, rounds))
