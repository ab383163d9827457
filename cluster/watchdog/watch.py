"""The watchdog: observations in, findings out.

Pure but for what it remembers: no clock, no threads. Guarantees, each asserted in
tests/cluster/watchdog/test_watch.py on simulated runs:
- an hour of healthy, noisy running raises nothing, also while other work takes the cores;
- a rank that hangs is named within the longer of 3 s and five median steps, one at half speed and
  a link at a tenth within 20 steps, each in at least 19 of 20 runs; ranks that lack cores are
  given as much more time as they lacked them;
- a finding stands for as long as its signs do, and not longer;
- an observer that pauses, or whose clock jumps, blames nobody for it;
- several faults at once are all found, the most serious first;
- after a recovery (a new generation) ranks start with a clean record.
"""

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.deadlines import Deadlines, History
from cluster.watchdog.delays import Delays
from cluster.watchdog.evidence import ClusterEvidence
from cluster.watchdog.finding import Finding, ordered
from cluster.watchdog.hang import Standstill, hangs
from cluster.watchdog.links import measured_links, slow_links
from cluster.watchdog.lost import losses
from cluster.watchdog.numeric import Losses
from cluster.watchdog.resources import HostMemories, LateData
from cluster.watchdog.slow import SlowRanks
from cluster.watchdog.starved import StarvedSteps
from cluster.watchdog.steps import Steps
from cluster.watchdog.tracks import Track
from cluster.watchdog.waits import current, modes, open_waits
from trainer.boards import RankReading


class Watchdog:
    """Judges a run. Observe it every quarter of a second; less often finds hangs later.

    watchdog = Watchdog(WatchdogConfig())
    finding = watchdog.observe(evidence)   # the most serious, None while all is well
    """

    def __init__(self, config: WatchdogConfig) -> None:
        self._config = config
        self._history = History(config)
        self._tracks: dict[int, Track] = {}
        self._steps = Steps(config.warm_up_steps)
        self._slow = SlowRanks(config)
        self._starved = StarvedSteps(config.window_steps)
        self._delays = Delays(config.window_steps)
        self._losses = Losses(config.loss_jump)
        self._late_data = LateData(config)
        self._memories = HostMemories(config.memory_horizon_steps)
        self._standing_slow: list[Finding] = []
        self._now_s: float | None = None
        self._generation = -1
        self.findings: tuple[Finding, ...] = ()
        """All that stands, the most serious first."""

    @property
    def deadlines(self) -> Deadlines:
        """As learned so far; `lines()` prints them."""
        return self._history.deadlines()

    def observe(self, evidence: ClusterEvidence) -> Finding | None:
        """Take one observation; the most serious finding, or None."""
        dt_s = self._elapsed_s(evidence.now_s)
        readings = current(evidence)
        self._begin_generation(readings)
        found = losses(evidence, silence_s=self._config.silence_s)
        found += self._standstills(evidence, readings, dt_s)
        found += self._trends(evidence, readings)
        found += self._losses.add(evidence)
        self.findings = ordered(found)
        return self.findings[0] if self.findings else None

    def _elapsed_s(self, now_s: float) -> float:
        before_s, self._now_s = self._now_s, now_s
        if before_s is None:
            return 0.0
        return min(max(0.0, now_s - before_s), self._config.longest_gap_s)

    def _begin_generation(self, readings: dict[int, RankReading]) -> None:
        generation = max((own.generation for own in readings.values()), default=-1)
        if generation == self._generation:
            return
        self._generation = generation
        self._tracks.clear()
        self._slow.forget()
        self._delays.forget()
        self._late_data.forget()
        self._memories.forget()
        self._standing_slow = []

    def _standstills(
        self, evidence: ClusterEvidence, readings: dict[int, RankReading], dt_s: float
    ) -> list[Finding]:
        waits = open_waits(readings)
        found_modes = modes(evidence.ranks, waits)
        for rank, seen in evidence.ranks.items():
            track = self._tracks.setdefault(rank, Track(rank))
            track.advance(seen, found_modes[rank], dt_s, self._history, self._config.warm_up_steps)
        moment = Standstill(
            evidence=evidence,
            readings=readings,
            tracks=self._tracks,
            modes=found_modes,
            waits=waits,
            history=self._history,
        )
        return hangs(moment, stopped_s=self._config.stopped_s)

    def _trends(self, evidence: ClusterEvidence, readings: dict[int, RankReading]) -> list[Finding]:
        self._delays.add(readings)
        taken = self._steps.take(readings)
        if not taken:
            return self._standing_slow
        hosts = {rank: seen.host for rank, seen in evidence.ranks.items()}
        roles = {rank: seen.role for rank, seen in evidence.ranks.items()}
        first = min(readings)
        totals_s = {rank: seen.starved_s for rank, seen in evidence.ranks.items()}
        self._starved.add(totals_s, len(taken))
        for step, ranks in taken:
            self._history.add_step(ranks[first].duration_s, step, ranks[first].work)
            self._slow.add(step, ranks, roles)
            self._late_data.add(ranks)
        self._delays.close_steps(len(taken))
        step = taken[-1][0]
        found = self._slow.findings(hosts, readings[first].phase)
        found += slow_links(
            self._delays,
            hosts,
            self._config,
            step=step,
            step_s=self._history.median_step_s,
            starved_s=self._starved.usual_s,
        )
        found += self._late_data.findings(hosts, step)
        found += measured_links(evidence.delays_s, hosts, self._config, step=step)
        self._standing_slow = found
        return found + self._memories.add(step, evidence.memory, now_s=evidence.now_s)
