"""Which link, or which end of links, became slow.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_links.py:
- a communicator is slow when nearly all steps of the window took it longer than usual by the ratio,
  and that cost more than `WORTH_SHARE` of the steps and the time in which ranks lacked cores;
- slow pairs between the same two hosts are one link, named by the hosts;
- where all links of one host or rank are slow, and no others, that end is named;
- measured delays from rank to rank tell senders from receivers.
"""

from collections import defaultdict
from collections.abc import Mapping
from statistics import median

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.delays import Delays, StepDelays, pair_ratios
from cluster.watchdog.finding import Cause, Finding
from cluster.watchdog.matrix import Located, Shape, locate, normalised

WORTH_SHARE = 0.02
"""Of a step: a link that costs less is not worth a word."""

_OF_WINDOW = 0.8

_CAUSES: dict[Shape, Cause] = {
    "cell": "slow-link",
    "row": "slow-sender",
    "column": "slow-receiver",
    "cross": "slow-endpoint",
    "everywhere": "slow-communication",
}


def slow_links(
    delays: Delays,
    hosts: Mapping[int, str],
    config: WatchdogConfig,
    *,
    step: int,
    step_s: float,
    starved_s: float = 0.0,
) -> list[Finding]:
    """What is slow now, from the transfers of the last steps; `step_s` is the usual step, in which
    ranks wanted a core and got none for `starved_s`."""
    windows = delays.windows()
    slow = {
        communicator: window
        for communicator, window in windows.items()
        if _is_slow(window, config, WORTH_SHARE * step_s + starved_s)
    }
    if not slow:
        return []
    cells = pair_ratios(windows, delays.members)
    sentences = [
        f"transfers of communicator {name} (ranks {list(delays.members[name])}) take "
        f"{median(d.ratio for d in window):.1f} times as long as they did, over the last "
        f"{len(window)} steps; that costs {_excess_s(window):.3f} s per step"
        for name, window in slow.items()
    ]
    known = {pair: value for pair, value in cells.items() if set(pair) <= set(hosts)}
    after_s = config.window_steps * step_s
    return [_finding(known, hosts, config.link_ratio, sentences, step=step, after_s=after_s)]


def measured_links(
    delays_s: Mapping[tuple[int, int], float],
    hosts: Mapping[int, str],
    config: WatchdogConfig,
    *,
    step: int,
) -> list[Finding]:
    """What is slow among delays that were measured rank by rank."""
    cells = normalised(delays_s)
    if not any(value >= config.link_ratio for value in cells.values()):
        return []
    sentence = (
        f"of {len(cells)} measured delays, the worst is {max(cells.values()):.1f} times the median"
    )
    return [_finding(cells, hosts, config.link_ratio, [sentence], step=step, after_s=0.0)]


def _is_slow(window: list[StepDelays], config: WatchdogConfig, worth_s: float) -> bool:
    slow = sum(delay.ratio >= config.link_ratio for delay in window)
    return slow >= _OF_WINDOW * len(window) and _excess_s(window) >= worth_s


def _excess_s(window: list[StepDelays]) -> float:
    return median(delay.excess_s for delay in window)


def _finding(
    cells: Mapping[tuple[int, int], float],
    hosts: Mapping[int, str],
    ratio: float,
    sentences: list[str],
    *,
    step: int,
    after_s: float,
) -> Finding:
    between = _between_hosts(cells, hosts)
    by_host = locate(between, ratio=ratio)
    by_rank = locate(cells, ratio=ratio)
    located = _narrower(by_host, by_rank, cells, hosts, ratio)
    link = rank = host = None
    if located and located.shape == "cell":
        link = _ends(located)
    elif located and isinstance(located.first, int):
        rank, host = located.first, hosts[located.first]
    elif located and isinstance(located.first, str):
        host = located.first
    return Finding(
        kind="slow",
        cause=_CAUSES[located.shape] if located else "slow-communication",
        rank=rank,
        host=host,
        link=link,
        step=step,
        detected_after_s=after_s,
        confidence=0.9 if link or host else 0.4,
        evidence=tuple(sentences),
        may_heal=True,
    )


def _between_hosts(
    cells: Mapping[tuple[int, int], float], hosts: Mapping[int, str]
) -> dict[tuple[str, str], float]:
    grouped: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for (first, second), value in cells.items():
        if hosts[first] != hosts[second]:
            grouped[hosts[first], hosts[second]].append(value)
    return {pair: median(values) for pair, values in grouped.items()}


def _narrower(
    by_host: Located | None,
    by_rank: Located | None,
    cells: Mapping[tuple[int, int], float],
    hosts: Mapping[int, str],
    ratio: float,
) -> Located | None:
    """Hosts, where what is slow lies between hosts and is not one rank's alone."""
    if by_host is None:
        return by_rank
    inside = any(
        value >= ratio and hosts[first] == hosts[second] for (first, second), value in cells.items()
    )
    one_rank = by_rank is not None and by_rank.shape in ("row", "column", "cross")
    many_ranks = len(set(hosts.values())) < len(hosts)
    if one_rank and (inside or not many_ranks):
        return by_rank
    return by_host


def _ends(located: Located) -> tuple[str, str]:
    first, second = sorted((located.first, located.second), key=str)
    if isinstance(first, int):
        return f"rank {first}", f"rank {second}"
    return str(first), str(second)
