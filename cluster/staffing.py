"""Processes in the place of lost ones: on the same host, or wherever there is room again."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import ray

from cluster.crew import Crew
from cluster.means import Means
from cluster.preflight import Node, living_nodes
from cluster.recovery.cordon import Cordon
from cluster.recovery.grow import Growth
from cluster.recovery.roster import Member
from cluster.view import RunView
from trainer.run_folder import append_event

_LOOK_S = 2.0
"""Between two looks for room: each asks the head node."""


class Staffing:
    """Knows which hosts are lost or cordoned. Used by the driver's main thread."""

    def __init__(
        self,
        crew: Crew,
        *,
        cordon: Cordon,
        growth: Growth,
        starting_s: float,
        view: RunView,
        events: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Processes have `starting_s` until they are ready."""
        self._crew = crew
        self._cordon = cordon
        self._growth = growth
        self._starting_s = starting_s
        self._view = view
        self._events = events
        self._clock = clock
        self._lost_nodes: set[str] = set()
        self._looked_s = clock()
        self._began_s: dict[int, float] = {}

    def lost_hosts(self, hosts: Iterable[Member], *, step: int) -> None:
        """Every process of the hosts of these is gone; one process of each is given."""
        for member in hosts:
            self._lost_nodes.add(member.node_id)
            if self._cordon.lost(member.address, self._clock()):
                self._tell_cordon(member, step)

    def is_lost(self, node_id: str) -> bool:
        """Whether all that was in the memory of this host is gone."""
        return node_id in self._lost_nodes

    def replace(self, lost: Member) -> None:
        """Start a process on the host of one that is gone, if the host is there."""
        for node in self._usable(lost_too=False):
            if node.node_id == lost.node_id:
                self._begin(node, lost.bundle)

    def refill(self, *, lost_too: bool) -> None:
        """Start a process for each place that has none, where the cluster has found room for it.
        `lost_too` takes hosts that were silent and are there."""
        if self._clock() - self._looked_s < _LOOK_S:
            return
        self._looked_s = self._clock()
        usable = {node.node_id: node for node in self._usable(lost_too=lost_too)}
        for bundle, node_id in self._crew.free_bundles().items():
            if node_id in usable:
                self._begin(usable[node_id], bundle)

    def grow(self, *, ranks: int, wanted: int, rest_s: float) -> int:
        """While `ranks` train and `wanted` once did: look for room and start processes there. How
        many could go on now; `rest_s` is how long the run will still take."""
        if ranks >= wanted or not self._growth.due(self._clock(), rest_s=rest_s):
            return ranks
        self.refill(lost_too=True)
        self._give_up_on_late()
        return min(wanted, len(self._crew.ready))

    def advance(self, *, timeout_s: float) -> None:
        """Have processes that are starting made ready, waiting so long at most."""
        for failure in self._crew.advance(timeout_s=timeout_s):
            self._view.warning(f"{failure.host}: a new process did not start: {failure.error}")
            self._growth.lost(self._clock())

    def changed(self, *, fewer: bool) -> None:
        """Another number of ranks goes on."""
        if fewer:
            self._growth.lost(self._clock())
        else:
            self._growth.changed(self._clock())

    def _usable(self, *, lost_too: bool) -> list[Node]:
        return [
            node
            for node in living_nodes(ray.nodes())
            if node.address not in self._cordon
            and (lost_too or node.node_id not in self._lost_nodes)
        ]

    def _begin(self, node: Node, bundle: int | None) -> None:
        member = self._crew.start(node, bundle)
        # From here on it is a host like any other: what dies there is replaced there.
        self._lost_nodes.discard(node.node_id)
        self._began_s[member.number] = self._clock()

    def _give_up_on_late(self) -> None:
        for member in self._crew.starting:
            began_s = self._began_s.get(member.number, self._clock())
            if self._clock() - began_s > self._starting_s:
                self._crew.dismiss(member)
                self._growth.lost(self._clock())

    def _tell_cordon(self, member: Member, step: int) -> None:
        cause = (
            f"{member.host} ({member.address}) was lost {self._cordon.after} times and gets no "
            "ranks any more in this run; look after it, and start the run again to use it, or "
            "raise recovery.cordon_after"
        )
        self._view.warning(cause)
        append_event(
            self._events,
            now_s=time.time(),
            kind="host_cordoned",
            step=step,
            host=member.host,
            cause=cause,
        )


def open_staffing(crew: Crew, means: Means, *, view: RunView, events: Path) -> Staffing:
    """As the recipe says."""
    return Staffing(
        crew,
        cordon=Cordon(after=means.cordon_after, window_s=means.cordon_window_s),
        growth=Growth(mode=means.grow, after_s=means.grow_after_s),
        starting_s=means.starting_s,
        view=view,
        events=events,
    )
