"""Which findings have been told of while they stand.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_told.py:
- what stands is told once, also where its signs come and go within `GONE_S`;
- what was gone for longer is told again when it comes back;
- memory is told as often as it is found.
"""

from cluster.watchdog.finding import Finding

GONE_S = 60.0


class Told:
    """Ask it about every finding, as long as it stands."""

    def __init__(self) -> None:
        self._seen_s: dict[object, float] = {}

    def is_new(self, finding: Finding, now_s: float) -> bool:
        """Whether to tell of it."""
        before_s = self._seen_s.get(finding.key)
        self._seen_s[finding.key] = now_s
        return before_s is None or now_s - before_s > GONE_S or finding.kind == "memory"
