"""Whether the split of ranks between training and sampling fits. Pure.

Guarantees, each asserted in tests/trainer/rl/conducting/test_advice.py:
- advice comes from a window of steps, and only once per window;
- the same advice is given once.
"""

from collections.abc import Mapping
from typing import Any

from trainer.rl.sizing import RoleTime, size_roles

_WINDOW_STEPS = 10
_LEAST_GAIN = 0.1


class Advice:
    """Busy seconds of both roles over a window of steps."""

    def __init__(self) -> None:
        self._trained_s: list[float] = []
        self._sampled_s = 0.0
        self._given: Mapping[str, int] | None = None

    def trained(self, seconds: float) -> None:
        """A step took so long, its wait for the batch not included."""
        self._trained_s.append(seconds)

    def sampled(self, seconds: float) -> None:
        """A worker was busy for so long."""
        self._sampled_s += seconds

    def due(self, *, trainers: int, workers: int) -> Mapping[str, Any] | None:
        """What to advise, for an event; None where there is nothing new."""
        steps = len(self._trained_s)
        if steps < _WINDOW_STEPS or not workers:
            return None
        trained_s, sampled_s = sum(self._trained_s) / steps, self._sampled_s / steps
        self._trained_s, self._sampled_s = [], 0.0
        if trained_s <= 0.0 or sampled_s <= 0.0:
            return None
        sizes = range(1, trainers + workers)
        roles = {
            "trainers": RoleTime(ranks=trainers, busy_s=trained_s, sizes=sizes),
            "rollout workers": RoleTime(ranks=workers, busy_s=sampled_s / workers, sizes=sizes),
        }
        found = size_roles(roles, ranks=trainers + workers, least_gain=_LEAST_GAIN)
        if not found.advised or found.ranks == self._given:
            return None
        self._given = found.ranks
        return {
            "trainers": found.ranks["trainers"],
            "workers": found.ranks["rollout workers"],
            "step_s": found.step_s,
            "present_s": found.present_s,
            "cause": found.sentence,
        }
