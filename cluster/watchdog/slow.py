"""Which rank computes slower than its peers.

Every step ends at the same time on all ranks, whoever is slow: the others wait. So ranks are
compared by what they did before they first waited, or, where that says little, by their step
without the waiting.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_slow.py:
- a rank is named only if it was slower than its peers in nearly all steps of the window, by more
  than the ratio and by more than the noise of all ranks explains;
- peers are ranks of the same role; a rank without any is compared with its own past;
- steps are compared per unit of work where ranks say how much they had, whatever the unit;
- waiting for peers, a longer step for all, or a pause of one rank names nobody.
"""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.finding import Finding
from cluster.watchdog.robust import against_others, log_ratio, spread
from cluster.watchdog.steps import RankStep

TELLING_SHARE = 0.2
"""Of the busy time: below it, what comes before the first wait says too little of the rest."""

_OF_WINDOW = 0.8
_SIGMAS = 4.0
_PAST_STEPS = 128


class SlowRanks:
    """Scores of the last steps. Feed it every step."""

    def __init__(self, config: WatchdogConfig) -> None:
        self._config = config
        self._scores: dict[int, deque[float]] = {}
        self._past: dict[int, deque[float]] = {}
        self._steps_s: deque[float] = deque(maxlen=config.window_steps)
        self._newest: dict[int, RankStep] = {}
        self._step = 0

    def add(self, step: int, ranks: Mapping[int, RankStep], roles: Mapping[int, str]) -> None:
        """Score one step."""
        self._step, self._newest = step, dict(ranks)
        self._steps_s.append(median(own.duration_s for own in ranks.values()))
        by_role: dict[str, dict[int, float]] = {}
        for rank, cost_s in costs(ranks).items():
            by_role.setdefault(roles.get(rank, ""), {})[rank] = cost_s
        for alike in by_role.values():
            scores = against_others(alike) or {r: self._own(r, c) for r, c in alike.items()}
            for rank, score in scores.items():
                window = self._scores.setdefault(rank, deque(maxlen=self._config.window_steps))
                window.append(score)

    def forget(self) -> None:
        """Begin anew, as after a recovery."""
        self._scores.clear()
        self._past.clear()

    def findings(self, hosts: Mapping[int, str], phase: str) -> list[Finding]:
        """The ranks that are slow now, slowest first."""
        window = self._config.window_steps
        full = {rank: list(own) for rank, own in self._scores.items() if len(own) == window}
        if not full:
            return []
        middles = {rank: median(own) for rank, own in full.items()}
        noise = median(spread(own) for own in full.values()) * math.sqrt(math.pi / 2 / window)
        least = max(math.log(self._config.slow_ratio), _SIGMAS * noise)
        slow = [
            rank
            for rank, own in full.items()
            if middles[rank] >= least
            and sum(score > least / 2 for score in own) >= _OF_WINDOW * window
        ]
        slow.sort(key=lambda rank: -middles[rank])
        return [self._finding(rank, math.exp(middles[rank]), hosts, phase, slow) for rank in slow]

    def _own(self, rank: int, cost_s: float) -> float:
        past = self._past.setdefault(rank, deque(maxlen=_PAST_STEPS))
        score = log_ratio(cost_s, median(past)) if len(past) >= 8 else 0.0
        # What is slow now must not become what is usual.
        if score < math.log(self._config.slow_ratio) / 2:
            past.append(cost_s)
        return score

    def _finding(
        self, rank: int, ratio: float, hosts: Mapping[int, str], phase: str, slow: list[int]
    ) -> Finding:
        host = hosts[rank]
        here = sorted(other for other in hosts if hosts[other] == host)
        waited_s = {r: own.waited_s for r, own in self._newest.items() if r != rank}
        before = "it did before" if rank in self._past else "its peers"
        sentences = [
            f"rank {rank} on {host} takes {ratio:.2f} times as long as {before} to compute, over "
            f"the last {self._config.window_steps} steps",
        ]
        if waited_s:
            sentences.append(
                f"in step {self._step} it waited for {self._newest[rank].waited_s:.2f} s, the "
                f"others for {median(waited_s.values()):.2f} s"
            )
        if len(here) > 1 and set(here) <= set(slow):
            sentences.append(f"all ranks of {host} are slow: look at the host")
        return Finding(
            kind="slow",
            cause="slow-compute",
            rank=rank,
            host=host,
            phase=phase,
            step=self._step,
            detected_after_s=sum(self._steps_s),
            confidence=0.9,
            evidence=tuple(sentences),
            may_heal=True,
        )


def costs(ranks: Mapping[int, RankStep]) -> dict[int, float]:
    """Seconds of compute per unit of work, by rank: all by the same measure."""
    busy_s = median(own.busy_s for own in ranks.values())
    early = median(own.compute_s for own in ranks.values()) >= TELLING_SHARE * busy_s
    seconds = {rank: own.compute_s if early else own.busy_s for rank, own in ranks.items()}
    works = [own.work for own in ranks.values()]
    if any(work is None or work <= 0 for work in works):
        return seconds
    return {rank: seconds[rank] / (own.work or 1.0) for rank, own in ranks.items()}
