"""When a run that lost ranks looks for room to have as many as before. Pure decisions.

Guarantees, each asserted in tests/cluster/recovery/test_grow.py:
- not before the wait is over, which begins at the last change of ranks;
- the wait doubles with every loss, up to an hour, so that a host that comes and goes does not keep
  a run from training;
- not in the last seconds of a run, which would pass with the change itself;
- never where the recipe says so.
"""

from dataclasses import dataclass
from typing import Literal

LONGEST_WAIT_S = 3600.0

WORTH_S = 20.0
"""A run that would be over by then stays as it is."""


@dataclass
class Growth:
    """Times are by one monotonic clock."""

    mode: Literal["auto", "never"]
    after_s: float
    losses: int = 0
    changed_s: float = 0.0

    def lost(self, now_s: float) -> None:
        """Ranks were lost, and fewer go on."""
        self.losses += 1
        self.changed_s = now_s

    def changed(self, now_s: float) -> None:
        """Another set of ranks goes on."""
        self.changed_s = now_s

    def due(self, now_s: float, *, rest_s: float) -> bool:
        """Whether to look for room now; `rest_s` is how long the run will still take."""
        wait_s = min(self.after_s * 2.0 ** max(0, self.losses - 1), LONGEST_WAIT_S)
        return self.mode == "auto" and now_s - self.changed_s >= wait_s and rest_s > WORTH_S
