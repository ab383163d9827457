"""Pure: rings and groups that follow the map of links, and when to measure it again.

Guarantees, each asserted in tests/trainer/planner/test_links.py:
- everything else of the plan is the planner's own, and what is observed reaches it;
- a measurement is asked for where communication took longer than predicted some times in a row,
  and not again for a while; noise asks for none;
- the order of rings changes where a measurement says that another is faster by enough, and groups
  of hosts where it says that others hang together;
- ranks of a host stay neighbours in a ring, in whatever order hosts follow each other;
- advice names islands only where hosts that hang together are equal blocks of neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from comms.links.map import LinkMap, map_of
from comms.links.order import Order
from comms.links.watch import Patience, Topology, first_topology, reconsider
from trainer.planner.costs import Hardware
from trainer.planner.plan import StepPlan, Terms
from trainer.planner.protocol import Planner

WARM_UP_STEPS = 5
"""Rates are rough at first, and predictions with them."""

REST_STEPS = 100
"""Between two measurements, which take seconds."""

LEAST_SHARE = 0.05
"""Of a step's time that communication must take to be worth a measurement."""


@dataclass
class LinkWatch:
    """What is known of the links between the hosts of an island, and whether to look again."""

    links: LinkMap
    rules: Patience = field(default_factory=Patience)
    topology: Topology = field(init=False)
    wanted: bool = field(default=False, init=False)
    """Whether a measurement is asked for."""

    _steps: int = field(default=0, init=False)
    _measured_at: int = field(default=0, init=False)
    _slow: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.topology = first_topology(self.links, self.rules)

    def observe(self, predicted: Terms, measured: Terms) -> None:
        """Take note of one step's communication."""
        self._steps += 1
        if self._steps <= WARM_UP_STEPS:
            return
        seconds = measured.communication_s
        slow = seconds > self.rules.least_gain * predicted.communication_s
        self._slow = self._slow + 1 if slow and seconds > LEAST_SHARE * measured.total_s else 0
        rested = not self._measured_at or self._steps - self._measured_at >= REST_STEPS
        if self._slow >= self.rules.patience and rested:
            self.wanted = True

    def take(self, links: LinkMap) -> bool:
        """Use what was measured now; whether rings or groups change. One measurement is enough,
        since several slow steps asked for it."""
        before = self.topology
        self.links = links
        self.topology = reconsider(before, links, replace(self.rules, patience=1))
        self.wanted = False
        self._measured_at, self._slow = self._steps, 0
        return (self.topology.ring, self.topology.groups) != (before.ring, before.groups)


class LinkedPlanner:
    """`planner`, for hosts whose links are watched."""

    def __init__(self, planner: Planner, watch: LinkWatch) -> None:
        self._planner = planner
        self._watch = watch

    @property
    def hardware(self) -> Hardware:
        """Rates as corrected so far."""
        return self._planner.hardware

    def choose(self, step: int, lengths_tokens: Sequence[int]) -> StepPlan:
        """The planner's plan for `step`, with the order of rings and the groups of hosts."""
        plan = self._planner.choose(step, lengths_tokens)
        measure, self._watch.wanted = self._watch.wanted, False
        topology = self._watch.topology
        together = topology.groups if len(topology.groups) > 1 else ()
        return replace(plan, ring_hosts=topology.ring, host_groups=together, measure_links=measure)

    def observe(self, plan: StepPlan, measured: Terms) -> None:
        """Learn from what `plan` took."""
        self._watch.observe(plan.predicted, measured)
        self._planner.observe(plan, measured)


def part_of(links: LinkMap, places: Sequence[int]) -> LinkMap:
    """The map of some places alone, numbered in their order."""
    return map_of(
        [[links.latency_s[a][b] for b in places] for a in places],
        [[links.bytes_per_s[a][b] for b in places] for a in places],
    )


def ring_places(hosts: Sequence[int], order: Order) -> tuple[int, ...]:
    """In which order a ring passes its places, of which each is on one of the `hosts`."""
    return tuple(sorted(range(len(hosts)), key=lambda place: (order.index(hosts[place]), place)))


def advice(groups: Sequence[Order], islands: int) -> str:
    """What the recipe could make of hosts that hang together; empty where there is nothing."""
    places = [place for group in groups for place in group]
    even = len({len(group) for group in groups}) == 1 and places == sorted(places)
    if len(groups) < 2 or not even or islands > 1:
        return ""
    return (
        f"links between {len(groups)} groups of hosts are less than half as fast as inside them; "
        f"parallel.island={len(groups)} would send only outer updates over them"
    )
