"""Pure: when ring and groups should change, because a link has turned slow.

Guarantees, each asserted in tests/comms/links/test_watch.py:
- ranks keep their own order unless another ring is `least_gain` times as fast: what is measured is
  never quite even;
- a choice stays as long as the best one is not `least_gain` times as fast, `patience` times in a
  row: neither noise nor a single slow message changes it;
- a link that stays slow changes it, and once;
- changed groups are as patient.
"""

from dataclasses import dataclass, replace

from comms.links.map import LinkMap
from comms.links.order import Order, groups, ring_bytes_per_s, ring_order


@dataclass(frozen=True, slots=True)
class Patience:
    """How much better, and how often in a row, before anything changes.

    Raises ValueError where the gain is not above 1 or nothing would be waited for.
    """

    least_gain: float = 1.3
    patience: int = 3

    def __post_init__(self) -> None:
        if not self.least_gain > 1 or self.patience < 1:
            raise ValueError(
                f"least_gain={self.least_gain} must be above 1 and patience={self.patience} at "
                "least 1; 1.3 and 3 are usual."
            )


@dataclass(frozen=True, slots=True)
class Topology:
    """What is in use, and how often in a row something else looked better."""

    ring: Order
    groups: tuple[Order, ...]
    doubts: int = 0


def first_topology(links: LinkMap, rules: Patience = Patience()) -> Topology:
    """What a fresh map asks for."""
    plain, best = tuple(range(links.places)), ring_order(links)
    gained = ring_bytes_per_s(links, best) / ring_bytes_per_s(links, plain)
    # A map of one place has no links: both are infinite.
    return Topology(best if gained >= rules.least_gain else plain, groups(links))


def reconsider(now: Topology, links: LinkMap, rules: Patience) -> Topology:
    """What to use from now on, looked at every so often. All ranks that look at equal maps decide
    equally; one rank should decide and tell the others."""
    best = first_topology(links, rules)
    gained = ring_bytes_per_s(links, best.ring) / ring_bytes_per_s(links, now.ring)
    if gained < rules.least_gain and best.groups == now.groups:
        return replace(now, doubts=0)
    if now.doubts + 1 < rules.patience:
        return replace(now, doubts=now.doubts + 1)
    return best
