"""Who is lost with a fault."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from cluster.crew import Crew
from cluster.failure import Failure, first_failure
from cluster.idle import blocked
from cluster.preflight import living_nodes
from cluster.recovery.incidents import Incidents
from cluster.recovery.roster import Member, Roster
from cluster.staffing import Staffing


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of one run. Used by the driver's main thread."""

    crew: Crew
    staffing: Staffing
    incidents: Incidents
    free_within_s: float
    """What survivors have until their work has ended."""

    def among(self, before: Roster, failures: Sequence[Failure]) -> list[Member]:
        """Processes that are gone, or still blocked in the work that failed. Hosts that are gone
        with them are told."""
        gone = {f.rank for f in failures if f.kind != "raised"}
        members = dict(enumerate(before.members))
        lost_hosts = self._hosts(members, failures)
        gone |= {rank for rank, member in members.items() if member.node_id in lost_hosts}
        others = {rank: self.crew.actor(m) for rank, m in members.items() if rank not in gone}
        gone |= set(blocked(others, within_s=self.free_within_s))
        return [members[rank] for rank in sorted(gone)]

    def _hosts(
        self, members: Mapping[int, Member], failures: Sequence[Failure]
    ) -> dict[str, Member]:
        """Hosts that are gone, by node, each with one of its processes."""
        failed = {members[f.rank].node_id for f in failures if f.kind != "raised"}
        alive = {node.node_id for node in living_nodes(ray.nodes())}
        nodes = {members[f.rank].node_id for f in failures if f.host_lost} | (failed - alive)
        lost = {m.node_id: m for m in members.values() if m.node_id in nodes}
        cause = first_failure(failures)
        self.incidents.hosts_lost([member.host for member in lost.values()], cause)
        self.staffing.lost_hosts(lost.values(), step=cause.step)
        return lost
