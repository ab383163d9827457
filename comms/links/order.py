"""Pure: which places should be neighbours, from a map of their links.

A ring is as fast as its slowest link (C4P, arXiv 2406.04594, chooses paths for the same reason).

Guarantees, each asserted in tests/comms/links/test_order.py:
- up to `EXACT_PLACES` places, no ring has a faster slowest link, and of those that have the same,
  none takes less time in sum; above, a ring is never worse than the order of the ranks;
- pairs leave out at most one place, and up to `EXACT_PLACES` no pairing has a faster slowest pair;
- groups are the parts that hang together by links at least `least_ratio` times as fast as every
  link between them, as coarse as possible; where there are none, one group holds all;
- answers depend on the map alone.
"""

import functools

from comms.links.map import LinkMap

EXACT_PLACES = 9
"""Up to here all orders are compared."""

_SWEEPS = 20

Order = tuple[int, ...]
Cost = tuple[float, float]
"""Seconds per byte of the slowest link, and of all links together: less is better."""


def ring_cost(links: LinkMap, order: Order) -> Cost:
    """What a ring costs whose places send to the next one, and the last to the first."""
    per_byte_s = [
        1 / links.bytes_per_s[a][b]
        for a, b in zip(order, (*order[1:], *order[:1]), strict=True)
        if a != b
    ]
    return max(per_byte_s, default=0.0), sum(per_byte_s)


def ring_bytes_per_s(links: LinkMap, order: Order) -> float:
    """Bandwidth of a ring's slowest link; infinite for one place."""
    slowest, _ = ring_cost(links, order)
    return 1 / slowest if slowest else float("inf")


def ring_order(links: LinkMap) -> Order:
    """The order in which a ring is fastest, beginning with place 0."""
    if links.places <= EXACT_PLACES:
        return _exact_ring(links)
    plain = tuple(range(links.places))
    orders = [_improved(links, order) for order in (plain, _greedy_ring(links))]
    return min(orders, key=lambda order: ring_cost(links, order))


def pairings(links: LinkMap) -> tuple[tuple[int, int], ...]:
    """Partners for all places, such as where snapshots are kept, so that the slowest pair is as
    fast as can be. With an odd number of places, one has none."""
    if links.places <= EXACT_PLACES:
        return _exact_pairs(links)
    free = set(range(links.places))
    ranked = sorted(
        ((a, b) for a, b in links.links() if a < b), key=lambda p: (-links.both_ways(*p), p)
    )
    found = []
    for a, b in ranked:
        if a in free and b in free:
            found.append((a, b))
            free -= {a, b}
    return tuple(sorted(_swapped(links, found)))


def groups(links: LinkMap, *, least_ratio: float = 2.0) -> tuple[Order, ...]:
    """Places that should reduce among themselves first, and between groups second.

    Raises ValueError where `least_ratio` is not above 1.
    """
    if not least_ratio > 1:
        raise ValueError(f"least_ratio={least_ratio} must be above 1; 2 is usual.")
    places = range(links.places)
    rates = sorted({links.both_ways(a, b) for a in places for b in places if a < b})
    whole = (tuple(places),)
    for rate in rates[1:]:
        parts = _joined(links, rate)
        if len(parts) == links.places:
            break
        if _apart(links, parts, rate, least_ratio):
            return parts
    return whole


def _exact_ring(links: LinkMap) -> Order:
    """Of all orders that begin with 0, the best, over sets of visited places."""
    places = links.places
    if places < 3:
        return tuple(range(places))
    paths: dict[tuple[int, int], tuple[Cost, Order]] = {(1, 0): ((0.0, 0.0), (0,))}
    for visited in range(1, 1 << places, 2):
        for last in range(places):
            found = paths.get((visited, last))
            if found is None:
                continue
            for after in range(1, places):
                if visited >> after & 1:
                    continue
                grown = _grown(found, 1 / links.bytes_per_s[last][after], after)
                key = (visited | 1 << after, after)
                paths[key] = min(grown, paths.get(key, grown))
    ends = [paths[(1 << places) - 1, last] for last in range(1, places)]
    return min(_grown(end, 1 / links.bytes_per_s[end[1][-1]][0], 0) for end in ends)[1][:-1]


def _grown(path: tuple[Cost, Order], per_byte_s: float, after: int) -> tuple[Cost, Order]:
    (slowest, total), order = path
    return (max(slowest, per_byte_s), total + per_byte_s), (*order, after)


def _greedy_ring(links: LinkMap) -> Order:
    """From 0 on, always to the fastest neighbour that is left."""
    order = [0]
    left = set(range(1, links.places))
    while left:
        rates = links.bytes_per_s[order[-1]]
        order.append(min(left, key=lambda place: (-rates[place], place)))
        left.remove(order[-1])
    return tuple(order)


def _improved(links: LinkMap, order: Order) -> Order:
    """Turn stretches around while that makes the ring better (2-opt)."""
    best, cost = order, ring_cost(links, order)
    for _ in range(_SWEEPS * links.places):
        candidates = (
            (*best[:a], *reversed(best[a:b]), *best[b:]) for a, b in _stretches(links, best)
        )
        found = min(candidates, key=lambda candidate: ring_cost(links, candidate), default=best)
        if ring_cost(links, found) >= cost:
            return best
        best, cost = found, ring_cost(links, found)
    return best


def _stretches(links: LinkMap, order: Order) -> list[tuple[int, int]]:
    """Stretches that begin or end at the slowest link. Place 0 stays first."""
    places = links.places
    rates = [links.bytes_per_s[order[n]][order[(n + 1) % places]] for n in range(places)]
    edge = rates.index(min(rates)) + 1
    return [(edge, b) for b in range(edge + 2, places + 1)] + [
        (a, edge) for a in range(1, edge - 1)
    ]


def _exact_pairs(links: LinkMap) -> tuple[tuple[int, int], ...]:
    @functools.cache
    def best(left: tuple[int, ...], spare: bool) -> tuple[Cost, tuple[tuple[int, int], ...]]:
        if not left:
            return (0.0, 0.0), ()
        first, others = left[0], left[1:]
        found = [best(others, False)] if spare else []
        for partner in others:
            rest, pairs = best(tuple(p for p in others if p != partner), spare)
            per_byte_s = 1 / links.both_ways(first, partner)
            cost = max(rest[0], per_byte_s), rest[1] + per_byte_s
            found.append((cost, ((first, partner), *pairs)))
        return min(found)

    return best(tuple(range(links.places)), links.places % 2 == 1)[1]


def _swapped(links: LinkMap, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Exchange partners with the slowest pair while that makes the slowest faster."""
    pairs = list(pairs)
    for _ in range(_SWEEPS * len(pairs)):
        slowest = min(range(len(pairs)), key=lambda n: links.both_ways(*pairs[n]))
        rate = links.both_ways(*pairs[slowest])
        a, b = pairs[slowest]
        swaps = [
            (min(links.both_ways(*one), links.both_ways(*two)), other, one, two)
            for other, (c, d) in enumerate(pairs)
            if other != slowest
            for one, two in (((a, c), (b, d)), ((a, d), (b, c)))
        ]
        best = max(swaps, default=None)
        if best is None or best[0] <= rate:
            break
        _, other, one, two = best
        pairs[slowest], pairs[other] = (min(one), max(one)), (min(two), max(two))
    return pairs


def _joined(links: LinkMap, rate: float) -> tuple[Order, ...]:
    """Places that hang together by links of at least `rate` both ways."""
    left = set(range(links.places))
    found = []
    while left:
        part, edge = set(), {min(left)}
        while edge:
            part |= edge
            left -= edge
            edge = {b for b in left if any(links.both_ways(a, b) >= rate for a in edge)}
        found.append(tuple(sorted(part)))
    return tuple(found)


def _apart(links: LinkMap, parts: tuple[Order, ...], rate: float, least_ratio: float) -> bool:
    """Whether there are several parts, and every link between them is that much slower."""
    between = [
        links.both_ways(a, b)
        for n, part in enumerate(parts)
        for other in parts[n + 1 :]
        for a in part
        for b in other
    ]
    return bool(between) and rate >= least_ratio * max(between)
