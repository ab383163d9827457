"""Who is gone after a fault."""

from collections.abc import Collection, Mapping, Sequence

import ray

from cluster.crew import Crew
from cluster.failure import Failure
from cluster.preflight import living_nodes
from cluster.recovery.roster import Member


def lost_nodes(members: Mapping[int, Member], failures: Sequence[Failure]) -> set[str]:
    """Nodes of these ranks that are gone."""
    failed = {members[f.rank].node_id for f in failures if f.kind != "raised"}
    alive = {node.node_id for node in living_nodes(ray.nodes())}
    return {members[f.rank].node_id for f in failures if f.host_lost} | (failed - alive)


def lost_ranks(
    members: Mapping[int, Member],
    failures: Sequence[Failure],
    nodes: Collection[str],
    crew: Crew,
    *,
    within_s: float,
) -> list[int]:
    """Ranks whose processes are gone, with their `nodes` or alone, or still blocked after
    `within_s` in the work that failed."""
    gone = {f.rank for f in failures if f.kind != "raised"}
    gone |= {rank for rank, member in members.items() if member.node_id in nodes}
    watches = {
        crew.actor(member).watch.remote(): rank
        for rank, member in members.items()
        if rank not in gone
    }
    if watches:
        _, blocked = ray.wait(list(watches), num_returns=len(watches), timeout=within_s)
        gone |= {watches[ref] for ref in blocked}
    return sorted(gone)
