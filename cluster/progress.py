"""Which steps were seen, and how long the rest will take. Pure decisions."""

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any

_WINDOW = 20


class Progress:
    """Steps of one run in order. The estimate is the median of recent steps, so that one slow
    step, such as the first, does not move it."""

    def __init__(self) -> None:
        self.step = 0
        """Last step seen."""

        self._durations_s: deque[float] = deque(maxlen=_WINDOW)

    def advance(self, reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The reports with `eta_s` added, seconds until the last step."""
        return [self._with_eta(report) for report in reports]

    def _with_eta(self, report: dict[str, Any]) -> dict[str, Any]:
        self.step = report["step"]
        self._durations_s.append(report["step_s"])
        remaining = report["total_steps"] - self.step
        return report | {"eta_s": remaining * median(self._durations_s)}
