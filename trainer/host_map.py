"""Which ranks share hosts, and how fast the links between hosts are: measured before anything is
spread over them."""

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import broadcast_bytes, own_group
from comms.links.map import LinkMap, map_of
from comms.links.probe import measure_links
from comms.links.watch import Topology, first_topology
from parallel.layout import Layout
from trainer.checkpoint.agreement import exchange

BUDGET_S = 2.0
"""For a measurement. Links too slow or too many for it take a little longer."""

Measure = Callable[[dist.ProcessGroup], LinkMap]

MEASURE: Measure = partial(measure_links, budget_s=BUDGET_S)


@dataclass(frozen=True, kw_only=True)
class HostMap:
    """Of all hosts of a run, the same on all ranks."""

    host_of: tuple[int, ...]
    """Per world rank. Those of a host are neighbours."""

    names: tuple[str, ...]
    links: LinkMap
    seconds: float
    """What the measurement took."""

    @property
    def topology(self) -> Topology:
        """What the links ask for."""
        return first_topology(self.links)

    @property
    def firsts(self) -> tuple[int, ...]:
        """The first rank of each host."""
        return tuple(self.host_of.index(host) for host in range(len(self.names)))


def map_hosts(environment: RankEnvironment, measure: Measure = MEASURE) -> HostMap | None:
    """Measure the links between all hosts, in some seconds; None where there is one host. All ranks
    call it, after joining; those of a host are neighbours."""
    # Not by their names, which may be the same everywhere.
    told = exchange(dist.group.WORLD, [environment.host, environment.local_rank])
    firsts = [rank for rank, (_, local_rank) in enumerate(told) if local_rank == 0]
    if len(firsts) == 1:
        return None
    group = own_group([firsts], backend="gloo")
    begin_s = time.perf_counter()
    payload = b""
    if group is not None:
        links = measure(group)
        seconds = time.perf_counter() - begin_s
        payload = json.dumps([links.latency_s, links.bytes_per_s, seconds]).encode()
    assert dist.group.WORLD is not None
    # Rank 0 is the first of its host, and all firsts have the same map.
    latency_s, bytes_per_s, seconds = json.loads(broadcast_bytes(payload, group=dist.group.WORLD))
    return HostMap(
        host_of=tuple(bisect_right(firsts, rank) - 1 for rank in range(len(told))),
        names=tuple(told[first][0] for first in firsts),
        links=map_of(latency_s, bytes_per_s),
        seconds=seconds,
    )


def near_first(
    lines: Sequence[Sequence[int]], host_of: Sequence[int], close: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """Pure: each line of ranks from fast links to slow: those of close hosts are neighbours."""
    group_of = {host: number for number, group in enumerate(close) for host in group}
    return tuple(
        tuple(sorted(line, key=lambda rank: (group_of[host_of[rank]], rank))) for line in lines
    )


def sharding_lines(layout: Layout, hosts: HostMap | None) -> tuple[tuple[int, ...], ...]:
    """The ranks that share out weights, gradients and optimizer states at several widths, each line
    from fast links to slow."""
    if hosts is None:
        return tuple(layout.islands())
    return near_first(layout.islands(), hosts.host_of, hosts.topology.groups)
