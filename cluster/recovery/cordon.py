"""Which hosts get no ranks any more. Pure decisions.

Guarantees, each asserted in tests/cluster/recovery/test_cordon.py:
- a host that was lost as often as allowed within the window is cordoned, and stays so;
- losses further apart than the window do not add up, nor do those of different hosts.
"""

from collections import deque


class Cordon:
    """Counts the losses of each host. Times are by one monotonic clock."""

    def __init__(self, *, after: int, window_s: float) -> None:
        """`after` losses within `window_s` cordon a host; 0 never does."""
        self.after = after
        self._window_s = window_s
        self._losses_s: dict[str, deque[float]] = {}
        self._cordoned: set[str] = set()

    def lost(self, address: str, now_s: float) -> bool:
        """A host was lost; whether that cordons it."""
        if self.after == 0 or address in self._cordoned:
            return False
        losses_s = self._losses_s.setdefault(address, deque(maxlen=self.after))
        losses_s.append(now_s)
        if len(losses_s) < self.after or now_s - losses_s[0] > self._window_s:
            return False
        self._cordoned.add(address)
        return True

    def __contains__(self, address: object) -> bool:
        """Whether a host is cordoned."""
        return address in self._cordoned
