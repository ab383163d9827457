"""Communicators for dispatch in two stages, and which ranks are together in the first.

    stages = ExpertStages(lines, dispatches)         # every expert group of the run
    stages.follow(host_of, ((0, 1), (2, 3)))         # hosts 0 and 1 are close, 2 and 3 too

Guarantees, each asserted in tests/parallel/experts/test_hosts.py:
- hosts that are close make up the first stage, where they share every expert group out evenly;
  where they do not, the ranks of each host do;
- groups that were made once are used again;
- results stay bitwise the same, whatever is together.
"""

from collections.abc import Sequence

from comms.groups import own_group
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.route import Hosts
from parallel.experts.transport import HostGroups

Members = tuple[int, ...]


def host_groups(
    expert_groups: Sequence[Sequence[int]], *, ranks_per_host: int
) -> HostGroups | None:
    """This rank's groups inside its host and between hosts; None where one stage is all there is.

    `expert_groups` are all expert groups of the run, as world ranks in order; neighbours share
    hosts, `ranks_per_host` of each group on every host it spans. All ranks of the world call it
    with the same arguments. Raises ValueError where hosts do not divide a group.
    """
    mine: HostGroups | None = None
    for ranks in expert_groups:
        if len(ranks) <= ranks_per_host or ranks_per_host == 1:
            continue
        if len(ranks) % ranks_per_host:
            raise ValueError(
                f"an expert group of {len(ranks)} ranks does not fill hosts with {ranks_per_host} "
                f"of them each; choose ep among the multiples of {ranks_per_host}"
            )
        hosts = Hosts.neighbours(len(ranks), local_ranks=ranks_per_host)
        mine = _make(ranks, hosts) or mine
    return mine


def stages_of(
    expert_group: Sequence[int], host_of: Sequence[int], close: Sequence[Sequence[int]]
) -> Hosts | None:
    """Pure: which places of an expert group are together in the first of two stages; None where
    rows should travel directly.

    `host_of` has the host of each world rank, `close` the groups that hosts form by their links.
    """
    group_of = {host: number for number, group in enumerate(close) for host in group}
    hosts = [host_of[rank] for rank in expert_group]
    # A host in no group is alone.
    for labels in ([group_of.get(host, -1 - host) for host in hosts], hosts):
        parts: dict[int, list[int]] = {}
        for place, label in enumerate(labels):
            parts.setdefault(label, []).append(place)
        sizes = {len(part) for part in parts.values()}
        if len(parts) > 1 and len(sizes) == 1 and sizes != {1}:
            return Hosts(tuple(tuple(part) for part in parts.values()))
    return None


class ExpertStages:
    """The stages of all dispatches of a rank, which change when hosts turn out to be close, or no
    longer so. All ranks of the world make it with the same `expert_groups`."""

    def __init__(
        self, expert_groups: Sequence[Sequence[int]], dispatches: Sequence[ExpertDispatch]
    ) -> None:
        self._lines = [tuple(line) for line in expert_groups]
        self._dispatches = dispatches
        self._made: dict[tuple[Members, Hosts], HostGroups | None] = {}

    def follow(self, host_of: Sequence[int], close: Sequence[Sequence[int]]) -> None:
        """Let rows travel as `stages_of` says. All ranks of the world call it alike, between two
        steps, as new groups may be made."""
        mine: HostGroups | None = None
        for line in self._lines:
            hosts = stages_of(line, host_of, close)
            if hosts is None:
                continue
            if (line, hosts) not in self._made:
                self._made[line, hosts] = _make(line, hosts)
            mine = self._made[line, hosts] or mine
        for dispatch in self._dispatches:
            dispatch.travel(mine)


def _make(ranks: Sequence[int], hosts: Hosts) -> HostGroups | None:
    """The two groups of this rank, None outside of `ranks`. Collective over the world."""
    inside = own_group([[ranks[place] for place in host] for host in hosts.ranks])
    places = [hosts.place(local) for local in range(hosts.local_ranks)]
    between = own_group([[ranks[at] for at in place] for place in places])
    if inside is None or between is None:
        return None
    return HostGroups(inside=inside, between=between, hosts=hosts)
