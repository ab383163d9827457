"""Which process has which rank, before a fault and after it. Pure decisions.

Guarantees, each asserted in tests/cluster/recovery/test_roster.py:
- the first roster puts the head node's ranks first, then the other nodes by address, and ranks of a
  node are neighbours in the order of their bundles;
- a process that goes on keeps its rank where as many ranks go on and its node kept all it had;
- a new process takes a rank that its own node lost, before one that another node lost;
- ranks of a node are neighbours in every roster;
- with fewer ranks than processes, those who had ranks go before those who had none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from cluster.reading import Place


@dataclass(frozen=True, kw_only=True)
class Member:
    """One worker process, with or without a rank."""

    number: int
    """Counts all processes of the run in the order in which they were started."""

    bundle: int | None
    """Its place in the placement group; None outside of it."""

    node_id: str
    host: str
    address: str
    is_head: bool
    device: int = 0
    """Position of its device among those of its node."""

    process: int = 0
    """Its number on its host; 0 until it is ready."""


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The processes of one generation by rank."""

    members: tuple[Member, ...]

    def places(self) -> list[Place]:
        """What each rank is told about where it runs, by rank."""
        on_node: dict[str, int] = {}
        for member in self.members:
            on_node[member.node_id] = on_node.get(member.node_id, 0) + 1
        seen: dict[str, int] = {}
        found = []
        for rank, member in enumerate(self.members):
            local = seen.get(member.node_id, 0)
            seen[member.node_id] = local + 1
            found.append(
                Place(
                    rank=rank,
                    node_id=member.node_id,
                    host=member.host,
                    address=member.address,
                    device=member.device,
                    local_rank=local,
                    local_world_size=on_node[member.node_id],
                )
            )
        return found


def first_roster(members: Sequence[Member], ranks: int) -> Roster:
    """Ranks for processes that never had any; those left over are spares."""
    return next_roster(members, None, ranks)


def next_roster(members: Sequence[Member], before: Roster | None, ranks: int) -> Roster:
    """`ranks` of `members`, who are alive and ready. Raises ValueError where they are too few."""
    if len(members) < ranks:
        raise ValueError(f"{ranks} ranks need as many processes, got {len(members)}")
    wanted = _wanted_ranks(members, before)
    chosen = sorted(members, key=lambda member: (wanted[member.number], _order(member)))[:ranks]
    first_of_node: dict[str, tuple[float, tuple[bool, int, str]]] = {}
    for member in chosen:
        key = (wanted[member.number], _order(member)[:3])
        first_of_node[member.node_id] = min(first_of_node.get(member.node_id, key), key)
    return Roster(
        members=tuple(
            sorted(
                chosen,
                key=lambda member: (
                    first_of_node[member.node_id],
                    wanted[member.number],
                    _order(member),
                ),
            )
        )
    )


def _wanted_ranks(members: Sequence[Member], before: Roster | None) -> Mapping[int, float]:
    """By number, the rank a process had or takes over; infinite for those who take none."""
    had = {} if before is None else {m.number: r for r, m in enumerate(before.members)}
    alive = {member.number for member in members}
    lost = [] if before is None else [m for m in before.members if m.number not in alive]
    wanted: dict[int, float] = {m.number: had.get(m.number, float("inf")) for m in members}
    new = sorted((m for m in members if m.number not in had), key=_order)
    for same_node in (True, False):
        for member in new:
            if wanted[member.number] != float("inf"):
                continue
            free = [m for m in lost if not same_node or m.node_id == member.node_id]
            if free:
                lost.remove(free[0])
                wanted[member.number] = had[free[0].number]
    return wanted


def _order(member: Member) -> tuple[bool, int, str, int]:
    bundle = member.number if member.bundle is None else member.bundle
    return not member.is_head, int(ip_address(member.address)), member.node_id, bundle
