"""The links between the hosts of a run: measured at start, and again when they seem to have turned
slow."""

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import own_group
from comms.links.map import LinkMap
from comms.links.order import groups, pairings, ring_order
from comms.links.probe import measure_links
from parallel.layout import Layout
from parallel.pool import SequencePool
from trainer.checkpoint.agreement import exchange
from trainer.planner.links import LinkWatch, advice, part_of, ring_places
from trainer.planner.plan import StepPlan
from trainer.run_folder import RunFolder, append_event

BUDGET_S = 2.0
"""For a measurement. Links too slow or too many for it take a little longer."""


@dataclass(kw_only=True)
class HostLinks:
    """Of the hosts that this rank's island has. All ranks of an island call each method alike."""

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
    budget_s: float
    _order: tuple[int, ...] = ()

    def follow(self, plan: StepPlan, pool: SequencePool) -> None:
        """Carry out what a plan says about links, before its step."""
        if plan.measure_links:
            self._measure(plan.step)
        if plan.ring_hosts and plan.ring_hosts != self._order:
            self._order = plan.ring_hosts
            numbers = {host: number for number, host in enumerate(self.hosts)}

            def order(ranks: Sequence[int]) -> tuple[int, ...]:
                return ring_places([numbers[self.host_of[r]] for r in ranks], plan.ring_hosts)

            pool.order_rings(order)

    def _measure(self, step: int) -> None:
        if self.group is None:
            return
        begin_s = time.perf_counter()
        links = measure_links(self.group, budget_s=self.budget_s)
        if self.watch is None:
            return
        before = self.watch.topology.ring
        changed = self.watch.take(links)
        append_event(
            self.folder.events,
            now_s=time.time(),
            kind="links_changed" if changed else "links_measured",
            step=step,
            cause="communication took longer than predicted",
            ring_before=list(before),
            ring=list(self.watch.topology.ring),
            bytes_per_s=[list(row) for row in links.bytes_per_s],
            seconds=time.perf_counter() - begin_s,
        )


def open_links(
    environment: RankEnvironment,
    layout: Layout,
    folder: RunFolder,
    *,
    step: int,
    budget_s: float = BUDGET_S,
) -> HostLinks | None:
    """Measure the links between all hosts, in some seconds; None where there is one host. All ranks
    call it; those of a host are neighbours."""
    # Not by their names, which may be the same everywhere.
    told = exchange(dist.group.WORLD, [environment.host, environment.local_rank])
    firsts = [rank for rank, (_, local_rank) in enumerate(told) if local_rank == 0]
    if len(firsts) == 1:
        return None
    host_of = tuple(bisect_right(firsts, rank) - 1 for rank in range(len(told)))
    names = [told[first][0] for first in firsts]
    everywhere = own_group([firsts], backend="gloo")
    lines = [[first for first in firsts if first in ranks] for ranks in layout.islands()]
    inside = own_group([line for line in lines if len(line) > 1], backend="gloo")
    begin_s = time.perf_counter()
    links = None if everywhere is None else measure_links(everywhere, budget_s=budget_s)
    if environment.rank == 0 and links is not None:
        seconds = time.perf_counter() - begin_s
        _record(links, names, layout, folder, step=step, seconds=seconds)
    island = layout.islands()[layout.island_of(environment.rank)]
    hosts = tuple(sorted({host_of[rank] for rank in island}))
    # Two places have one ring.
    leads = environment.rank == island[0] and len(hosts) > 2
    return HostLinks(
        host_of=host_of,
        hosts=hosts,
        group=inside,
        watch=LinkWatch(part_of(links, hosts)) if leads and links is not None else None,
        folder=folder,
        budget_s=budget_s,
    )


def _record(
    links: LinkMap,
    names: Sequence[str],
    layout: Layout,
    folder: RunFolder,
    *,
    step: int,
    seconds: float,
) -> None:
    together = groups(links)
    append_event(
        folder.events,
        now_s=time.time(),
        kind="links_measured",
        step=step,
        hosts=list(names),
        latency_s=[list(row) for row in links.latency_s],
        bytes_per_s=[list(row) for row in links.bytes_per_s],
        ring=list(ring_order(links)),
        groups=[list(group) for group in together],
        pairings=[list(pair) for pair in pairings(links)],
        advice=advice(together, layout.island),
        seconds=seconds,
    )
