"""What follows the links between the hosts of a run, and when they are measured again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import own_group
from comms.links.order import pairings
from parallel.config import ParallelConfig
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.hosts import ExpertStages
from parallel.layout import Layout
from parallel.sequence.communicators import RingOrder
from trainer.assembly import Assembly
from trainer.host_map import MEASURE, HostMap, Measure
from trainer.model.experts import Experts
from trainer.planner.links import LinkWatch, advice, part_of, ring_places
from trainer.planner.plan import StepPlan
from trainer.run_folder import RunFolder, append_event


class RingFollower(Protocol):
    """Something that passes hosts along a ring, such as a `SequencePool` or `Replicas`."""

    def order_rings(self, order: RingOrder) -> None:
        """Pass them in another order from now on."""


@dataclass(frozen=True, kw_only=True)
class Followers:
    """What of a rank follows the links between hosts."""

    rings: Sequence[RingFollower] = ()
    stages: ExpertStages | None = None
    """Of expert dispatch, where they may change."""


@dataclass(kw_only=True)
class HostLinks:
    """Of the hosts that this rank's island has. All ranks of an island call each method alike."""

    followers: Followers

    host_of: tuple[int, ...]
    """Per world rank."""

    hosts: tuple[int, ...]
    """Those of the island, in order."""

    group: dist.ProcessGroup | None
    """The first rank of each; None on all others."""

    watch: LinkWatch | None
    """On the first rank of the island; None on all others, and where there are too few hosts for
    rings to have a choice."""

    folder: RunFolder
    measure: Measure
    _order: tuple[int, ...] = ()
    _together: tuple[tuple[int, ...], ...] = ()

    def follow(self, plan: StepPlan) -> None:
        """Carry out what a plan says about links, before its step."""
        if plan.measure_links:
            self._measure(plan.step)
        if plan.ring_hosts and plan.ring_hosts != self._order:
            self._order = plan.ring_hosts
            numbers = {host: number for number, host in enumerate(self.hosts)}

            def order(ranks: Sequence[int]) -> tuple[int, ...]:
                return ring_places([numbers[self.host_of[r]] for r in ranks], plan.ring_hosts)

            for ring in self.followers.rings:
                ring.order_rings(order)
        stages = self.followers.stages
        if stages is not None and plan.host_groups != self._together:
            self._together = plan.host_groups
            stages.follow(self.host_of, plan.host_groups)

    def _measure(self, step: int) -> None:
        if self.group is None:
            return
        begin_s = time.perf_counter()
        links = self.measure(self.group)
        if self.watch is None:
            return
        before = self.watch.topology
        changed = self.watch.take(links)
        append_event(
            self.folder.events,
            now_s=time.time(),
            kind="links_changed" if changed else "links_measured",
            step=step,
            cause="communication took longer than predicted",
            ring_before=list(before.ring),
            ring=list(self.watch.topology.ring),
            groups_before=[list(group) for group in before.groups],
            groups=[list(group) for group in self.watch.topology.groups],
            bytes_per_s=[list(row) for row in links.bytes_per_s],
            seconds=time.perf_counter() - begin_s,
        )


def open_links(
    hosts: HostMap | None,
    environment: RankEnvironment,
    followers: Followers,
    layout: Layout,
    folder: RunFolder,
    *,
    step: int,
    measure: Measure = MEASURE,
) -> HostLinks | None:
    """Follow the links between `hosts`; None where there are none. All ranks call it alike."""
    if hosts is None:
        return None
    lines = [[first for first in hosts.firsts if first in ranks] for ranks in layout.islands()]
    inside = own_group([line for line in lines if len(line) > 1], backend="gloo")
    if environment.rank == 0:
        _record(hosts, layout, folder, step=step)
    island = layout.islands()[layout.island_of(environment.rank)]
    own = tuple(sorted({hosts.host_of[rank] for rank in island}))
    # Two places have one ring.
    leads = environment.rank == island[0] and len(own) > 2
    return HostLinks(
        host_of=hosts.host_of,
        hosts=own,
        group=inside,
        watch=LinkWatch(part_of(hosts.links, own)) if leads else None,
        followers=followers,
        folder=folder,
        measure=measure,
    )


def followers_of(assembly: Assembly, parallel: ParallelConfig) -> Followers:
    """What of a run may follow the links between its hosts."""
    rings: list[RingFollower] = [assembly.pool]
    if assembly.replicas is not None:
        rings.append(assembly.replicas)
    layout = assembly.layout
    # All ranks make groups together, and islands decide apart.
    if layout.ep == 1 or layout.island > 1 or not parallel.two_stage_experts:
        return Followers(rings=rings)
    lines = sorted({layout.line("ep", rank) for rank in range(layout.world_size)})
    modules = assembly.weights.model.modules()
    exchanges = [module.exchange for module in modules if isinstance(module, Experts)]
    dispatches = [one for one in exchanges if isinstance(one, ExpertDispatch)]
    return Followers(rings=rings, stages=ExpertStages(lines, dispatches))


def _record(hosts: HostMap, layout: Layout, folder: RunFolder, *, step: int) -> None:
    topology = hosts.topology
    append_event(
        folder.events,
        now_s=time.time(),
        kind="links_measured",
        step=step,
        hosts=list(hosts.names),
        latency_s=[list(row) for row in hosts.links.latency_s],
        bytes_per_s=[list(row) for row in hosts.links.bytes_per_s],
        ring=list(topology.ring),
        groups=[list(group) for group in topology.groups],
        pairings=[list(pair) for pair in pairings(hosts.links)],
        advice=advice(topology.groups, layout.island),
        seconds=hosts.seconds,
    )
