"""How long each rank has been where it is, by the observer's clock."""

from dataclasses import dataclass
from typing import Any

from cluster.watchdog.deadlines import History
from cluster.watchdog.evidence import RankEvidence
from cluster.watchdog.phases import IN_STEP
from cluster.watchdog.waits import Mode
from trainer.boards import RankReading

LEAST_SHARE = 0.05
"""Of the time counts whatever a rank starved, so that one that hangs is found at last."""

UNHEARD_S = 1.0
"""After this long without news nothing is known of what a rank does: its times stand still."""


@dataclass
class Track:
    """One rank. Times are sums over observations, without those in which it wanted a core and got
    none: such a rank is slowed down by whatever else its host does, and does not hang.
    """

    rank: int
    own_s: float = 0.0
    """Without progress, while it waited for nobody."""

    transfer_s: float = 0.0
    """Without progress, in a collective that all had entered."""

    waiting_s: float = 0.0
    """Without progress, in a collective that others had not entered."""

    round_s: float = 0.0
    step_s: float = 0.0
    """In this step, without long phases inside it and without waiting for other ranks."""

    stopped_s: float = 0.0
    stopped_seen: int = 0
    steps: int = 0
    """Ended in this generation."""

    starved_s: float = 0.0
    """What was left out since it last made progress."""

    reading: RankReading | None = None
    _signature: Any = None
    _starved_before_s: float | None = None
    _owed_s: float = 0.0

    def advance(
        self, seen: RankEvidence, mode: Mode, dt_s: float, history: History, warm_up_steps: int
    ) -> None:
        """Add an observation, `dt_s` after the one before; tell `history` what came to an end."""
        self._watch_process(seen, dt_s)
        reading = seen.reading
        if reading is None or seen.silent_s > UNHEARD_S:
            return
        dt_s = self._fed_s(seen.starved_s, dt_s)
        before, self.reading = self.reading, reading
        if before is None or before.generation != reading.generation:
            self._begin(reading)
            return
        learn = history if self.steps >= warm_up_steps else None
        self._watch_progress(before, reading, mode, dt_s, learn)
        if reading.phase in IN_STEP and mode != "waiting":
            self.step_s += dt_s
            self.round_s += dt_s
        if (before.step, before.round) != (reading.step, reading.round):
            if learn and before.phase in IN_STEP:
                learn.add_round(self.round_s)
            self.round_s = 0.0
        if reading.ended_step != before.ended_step:
            self.steps += max(1, reading.ended_step - before.ended_step)
            self.step_s = self.round_s = 0.0

    def _fed_s(self, starved_s: float, dt_s: float) -> float:
        """Of `dt_s`, what counts. News of starvation may come after the time it is about."""
        before_s, self._starved_before_s = self._starved_before_s, starved_s
        if before_s is not None:
            self._owed_s = min(UNHEARD_S, self._owed_s + max(0.0, starved_s - before_s))
        given_s = min(self._owed_s, (1.0 - LEAST_SHARE) * dt_s)
        self._owed_s -= given_s
        self.starved_s += given_s
        return dt_s - given_s

    def _begin(self, reading: RankReading) -> None:
        self.starved_s = 0.0
        self.own_s = self.transfer_s = self.waiting_s = self.round_s = self.step_s = 0.0
        self.steps = 0
        self._signature = _signature(reading)

    def _watch_progress(
        self,
        before: RankReading,
        reading: RankReading,
        mode: Mode,
        dt_s: float,
        learn: History | None,
    ) -> None:
        signature = _signature(reading)
        if signature == self._signature:
            self.own_s += dt_s * (mode == "own")
            self.transfer_s += dt_s * (mode == "transfer")
            self.waiting_s += dt_s * (mode == "waiting")
            return
        self._signature = signature
        # Short silences count too, else the usual one would be that of pauses alone.
        if learn and (self.own_s > 0.0 or self.transfer_s == self.waiting_s == 0.0):
            learn.add_silence(before.phase, self.own_s, before.step)
        if learn and self.transfer_s > 0.0:
            learn.add_transfer(self.transfer_s, before.step)
        self.own_s = self.transfer_s = self.waiting_s = self.starved_s = 0.0

    def _watch_process(self, seen: RankEvidence, dt_s: float) -> None:
        if seen.process == "stopped":
            self.stopped_seen += 1
            self.stopped_s += dt_s if self.stopped_seen > 1 else 0.0
        else:
            self.stopped_seen, self.stopped_s = 0, 0.0


def _signature(reading: RankReading) -> tuple[Any, ...]:
    """Changes whenever the rank gets on."""
    last = reading.recent[-1] if reading.recent else None
    return (
        reading.phase,
        reading.step,
        reading.round,
        frozenset(reading.last_sequence.items()),
        len(reading.pending),
        (last.communicator, last.sequence) if last else None,
        reading.ended_step,
    )
