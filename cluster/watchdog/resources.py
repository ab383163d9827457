"""Memory that will run out, and batches that come too late.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_resources.py:
- memory of a host that will be full within the horizon is said once per quarter of the horizon,
  with the rank that grew most;
- the first steps of new processes, which fill caches, are no trend;
- memory that others take on the host is no trend of this run, where its ranks' own is known, nor is
  what grows for a few seconds only;
- batches are late when waiting for them took a large part of nearly all steps of the window, and
  much more than it did; a run that always waited for its data is not at fault.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from cluster.host_memory import GIB, slope_alarm
from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.evidence import HostMemory
from cluster.watchdog.finding import Finding
from cluster.watchdog.steps import RankStep

LATE_SHARE = 0.3
"""Of a step."""

WARM_UP_STEPS = 10
"""Allocators and caches fill in the first steps of a process; that is no trend."""

_OVER_USUAL = 3.0
_OF_WINDOW = 0.8
_SAMPLES = 48
_SAMPLE_EVERY_S = 0.9
"""Ranks tell their memory once a second; more samples are the same ones again."""

_OWN_SHARE = 0.25
"""Of the growth: where the ranks have less of it, somebody else grows."""

_LEAST_SAMPLES = 24
_JUDGED_EVERY = 8
_USUAL_STEPS = 128


@dataclass
class _Samples:
    """Of one host: step, bytes in use, and bytes that the ranks hold of them."""

    told: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    told_s: float = -math.inf
    unjudged: int = 0

    def take(self, step: int, own: HostMemory, now_s: float) -> bool:
        """Whether it is time to judge."""
        if abs(now_s - self.told_s) < _SAMPLE_EVERY_S:
            return False
        self.told_s = now_s
        self.told.append((step, own.used_bytes, sum(own.ranks_bytes.values())))
        self.unjudged += 1
        if len(self.told) < _LEAST_SAMPLES or self.unjudged < _JUDGED_EVERY:
            return False
        self.unjudged = 0
        return True

    def grown_by_others(self) -> bool:
        """Whether little of the growth is the ranks'; False where theirs is not known."""
        _, first_used, first_held = self.told[0]
        _, used, held = self.told[-1]
        return held > 0 and held - first_held < _OWN_SHARE * (used - first_used)


class HostMemories:
    """Memory of each host over steps. Feed it each step."""

    def __init__(self, horizon_steps: int) -> None:
        self._horizon_steps = horizon_steps
        self._samples: dict[str, _Samples] = {}
        self._quiet_until: dict[str, int] = {}
        self._warm_from: int | None = None
        self._first_bytes: dict[int, int] = {}

    def forget(self) -> None:
        """Processes are new."""
        self._samples.clear()
        self._first_bytes.clear()
        self._warm_from = None

    def add(self, step: int, memory: Mapping[str, HostMemory], *, now_s: float) -> list[Finding]:
        """What this step says."""
        if self._warm_from is None:
            self._warm_from = step + WARM_UP_STEPS
        if step < self._warm_from:
            return []
        found = []
        for host, own in memory.items():
            for rank, held_bytes in own.ranks_bytes.items():
                self._first_bytes.setdefault(rank, held_bytes)
            samples = self._samples.setdefault(host, _Samples())
            due = samples.take(step, own, now_s) and step >= self._quiet_until.get(host, 0)
            if not due or samples.grown_by_others():
                continue
            alarm = slope_alarm(
                [(at, used) for at, used, _ in samples.told],
                capacity_bytes=own.total_bytes,
                horizon_steps=self._horizon_steps,
            )
            if alarm:
                self._quiet_until[host] = step + max(1, self._horizon_steps // 4)
                found.append(_memory(host, step, alarm, self._growth(own)))
        return found

    def _growth(self, own: HostMemory) -> dict[int, int]:
        return {
            rank: held_bytes - self._first_bytes[rank]
            for rank, held_bytes in own.ranks_bytes.items()
        }


class LateData:
    """Waiting for batches. Feed it each step."""

    def __init__(self, config: WatchdogConfig) -> None:
        self._window_steps = config.window_steps
        self._late: dict[int, deque[bool]] = {}
        self._usual: dict[int, deque[float]] = {}
        self._step_s = 0.0

    def forget(self) -> None:
        """Ranks are others, and may be fewer."""
        self._late.clear()
        self._usual.clear()

    def add(self, ranks: Mapping[int, RankStep]) -> None:
        """Remember one step."""
        self._step_s = median(own.duration_s for own in ranks.values())
        for rank, own in ranks.items():
            if own.data_s is None:
                continue
            share = own.data_s / max(own.duration_s, 1e-9)
            usual = self._usual.setdefault(rank, deque(maxlen=_USUAL_STEPS))
            known = len(usual) >= self._window_steps
            late = known and share > max(LATE_SHARE, _OVER_USUAL * median(usual))
            self._late.setdefault(rank, deque(maxlen=self._window_steps)).append(late)
            if not late:
                usual.append(share)

    def findings(self, hosts: Mapping[int, str], step: int) -> list[Finding]:
        """One, naming the rank whose batches are late in most steps."""
        late = {
            rank: sum(own)
            for rank, own in self._late.items()
            if sum(own) >= _OF_WINDOW * self._window_steps
        }
        if not late:
            return []
        rank = max(late, key=lambda rank: (late[rank], -rank))
        ranks = sorted(late)
        return [
            Finding(
                kind="data",
                cause="slow-data",
                rank=rank,
                host=hosts[rank],
                phase="data",
                step=step,
                detected_after_s=self._window_steps * self._step_s,
                confidence=0.9 if len(ranks) == 1 else 0.5,
                evidence=(
                    f"ranks {ranks} waited for their batch for over {LATE_SHARE:.0%} of the step "
                    f"in {late[rank]} of the last {self._window_steps} steps",
                ),
                may_heal=True,
            )
        ]


def _memory(host: str, step: int, alarm: str, growth_bytes: Mapping[int, int]) -> Finding:
    told = f"host memory of {host}: {alarm}"
    rank = max(growth_bytes, key=lambda rank: growth_bytes[rank], default=None)
    if rank is not None:
        grown_gib = growth_bytes[rank] / GIB
        told += f"; of its ranks, {rank} grew most ({grown_gib:+.2f} GiB since warm-up)"
    return Finding(
        kind="memory",
        cause="memory-slope",
        host=host,
        rank=rank,
        step=step,
        detected_after_s=0.0,
        confidence=0.8,
        evidence=(told,),
    )
