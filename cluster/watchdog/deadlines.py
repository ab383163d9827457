"""How long a rank may go without progress, learned from how long healthy ranks did.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_deadlines.py:
- silence in a step < round < step < outer, whatever the history; every phase < outer;
- a hang in a step is over its deadline within the longer of 3 s and five median steps, unless
  healthy ranks were silent for longer;
- a pause that was seen to end is never over the deadline when it comes again;
- before enough steps were seen, and in phases never seen, the deadline is that of first steps;
- a long phase has a deadline of its own and does not move that of steps;
- a step with more work has proportionally more time.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.phases import IN_STEP
from cluster.watchdog.robust import quantile

KNOWN_STEPS = 5
"""Steps that have to end before their length is known."""

NEST = 1.5
"""Each deadline over the one it encloses."""

REMEMBERED_STEPS = 2000
"""For how long an unusually long pause raises the deadline."""

NO_SAVE_S = 0.5
"""A shorter stay in a long phase says nothing of it: there was nothing to save, for example."""

_TRANSFER = "transfer"
_REMEMBERED = 16
_USUAL = 0.95
_OVER_USUAL = 2.0
_OVER_LONGEST = 1.25
_OVER_LONGEST_PHASE = 4.0


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds, nested: each level is given up only after those inside it."""

    silence_s: float
    """Without progress of its own, in a step."""

    steps_s: float
    """The part of it that grows with the work of a step; pauses do not."""

    transfer_s: float
    """In a collective that all ranks have entered."""

    round_s: float
    step_s: float
    phases_s: Mapping[str, float]
    """Without progress, in phases that differ from `silence_s`."""

    unseen_s: float
    """In a phase that was never seen."""

    known: bool
    """Whether the length of a step is known."""

    @property
    def outer_s(self) -> float:
        """What encloses all: no timeout of a process group may be shorter, or it fires first."""
        inner = [self.step_s, self.transfer_s, self.unseen_s, *self.phases_s.values()]
        return NEST * max(inner)

    def silence_in(self, phase: str, *, more_work: float = 1.0) -> float:
        """The deadline of one phase for a rank with `more_work` times the usual work to do."""
        if phase in IN_STEP:
            steps_s = self.steps_s * more_work
            return max(self.silence_s, self.phases_s.get(phase, 0.0), steps_s)
        return self.phases_s.get(phase, self.unseen_s)

    def lines(self) -> list[str]:
        """A table of them, innermost first."""
        rows = [
            ("no progress in a step", self.silence_s),
            ("collective that all entered", self.transfer_s),
            ("round", self.round_s),
            ("step", self.step_s),
            *((f"phase {name}", value) for name, value in sorted(self.phases_s.items())),
            ("phase never seen", self.unseen_s),
            ("process group timeout, at least", self.outer_s),
        ]
        return [f"{name:<32} {value:>9.1f} s" for name, value in rows]


class History:
    """What healthy ranks took. Feed it everything; it answers with deadlines."""

    def __init__(self, config: WatchdogConfig) -> None:
        self._config = config
        self._silences_s: deque[float] = deque(maxlen=512)
        self._transfers_s: deque[float] = deque(maxlen=512)
        self._long_s: dict[str, list[tuple[int, float]]] = {}
        self._rounds_s: deque[float] = deque(maxlen=256)
        self._steps_s: deque[float] = deque(maxlen=64)
        self._work: deque[float] = deque(maxlen=64)
        self._newest_step = 0
        self._made: Deadlines | None = None

    def add_silence(self, phase: str, seconds: float, step: int) -> None:
        """A rank went on after being silent for so long, with nobody to wait for."""
        if phase in IN_STEP:
            self._silences_s.append(seconds)
        least_s = self._config.stuck_floor_s / _OVER_USUAL if phase in IN_STEP else NO_SAVE_S
        if seconds > least_s:
            self._remember(phase, seconds, step)

    def add_transfer(self, seconds: float, step: int) -> None:
        """A collective ended so long after all ranks were in it."""
        self._transfers_s.append(seconds)
        if seconds > self._config.stuck_floor_s / _OVER_USUAL:
            self._remember(_TRANSFER, seconds, step)

    def add_round(self, seconds: float) -> None:
        """A round took so long."""
        self._rounds_s.append(seconds)

    def add_step(self, seconds: float, step: int, work: float | None) -> None:
        """A step took so long."""
        self._newest_step = max(self._newest_step, step)
        self._steps_s.append(seconds)
        self._made = None
        if work is not None and work > 0:
            self._work.append(work)

    @property
    def median_step_s(self) -> float:
        """0 before the first."""
        return median(self._steps_s) if self._steps_s else 0.0

    def more_work(self, work: float) -> float:
        """How much more than usual `work` is; at least 1, since small steps pause as long."""
        if not work or not self._work:
            return 1.0
        return max(1.0, work / median(self._work))

    def deadlines(self) -> Deadlines:
        """What history allows. Remade after each step."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _remember(self, phase: str, seconds: float, step: int) -> None:
        since = self._newest_step - REMEMBERED_STEPS if phase in IN_STEP | {_TRANSFER} else 0
        kept = [(at, long_s) for at, long_s in self._long_s.get(phase, ()) if at >= since]
        kept.append((step, seconds))
        self._long_s[phase] = sorted(kept, key=lambda item: -item[1])[:_REMEMBERED]
        self._made = None

    def _longest_s(self, phase: str) -> float:
        since = self._newest_step - REMEMBERED_STEPS
        return max((s for step, s in self._long_s.get(phase, ()) if step >= since), default=0.0)

    def _make(self) -> Deadlines:
        config = self._config
        known = len(self._steps_s) >= KNOWN_STEPS
        base_s = transfer_s = config.first_steps_s
        steps_s = 0.0
        phases_s: dict[str, float] = {}
        if known:
            steps_s = config.stuck_steps * self.median_step_s
            base_s = max(config.stuck_floor_s, steps_s, self._usual_s(self._silences_s))
            transfer_s = max(
                config.stuck_floor_s,
                steps_s,
                self._usual_s(self._transfers_s),
                _OVER_LONGEST * self._longest_s(_TRANSFER),
            )
            phases_s = self._of_phases(base_s)
        in_step = [own for phase, own in phases_s.items() if phase in IN_STEP]
        round_s = max(
            NEST * max([base_s, transfer_s, *in_step]),
            6 * (median(self._rounds_s) if self._rounds_s else 0.0),
            _OVER_USUAL * max(self._rounds_s, default=0.0),
        )
        step_s = max(
            NEST * round_s, 6 * self.median_step_s, _OVER_USUAL * max(self._steps_s, default=0.0)
        )
        return Deadlines(
            silence_s=base_s,
            steps_s=steps_s,
            transfer_s=transfer_s,
            round_s=round_s,
            step_s=step_s,
            phases_s=phases_s,
            unseen_s=config.first_steps_s,
            known=known,
        )

    def _usual_s(self, seconds: deque[float]) -> float:
        return _OVER_USUAL * quantile(seconds, _USUAL) if seconds else 0.0

    def _of_phases(self, base_s: float) -> dict[str, float]:
        found = {}
        for phase, long in self._long_s.items():
            if phase in IN_STEP:
                found[phase] = max(base_s, _OVER_LONGEST * self._longest_s(phase))
                continue
            # While some ranks are still in it for the first time, nothing is known of it.
            longest_s = max((s for step, s in long if step < self._newest_step), default=0.0)
            if phase != _TRANSFER and longest_s > 0:
                floor_s = max(self._config.long_phase_floor_s, base_s)
                found[phase] = max(floor_s, _OVER_LONGEST_PHASE * longest_s)
        return found
