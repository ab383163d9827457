"""Hosts that were not heard of for a while, and that were heard of again.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_silences.py:
- a silence is told once when it has lasted `TOLD_S`, and its end once, with its length;
- silence of all hosts at once, or of the only one, is the observer's own and is not told.
"""

from collections.abc import Mapping
from dataclasses import dataclass

TOLD_S = 2.5
"""Shorter ones are those of a busy host."""


@dataclass(frozen=True)
class Silence:
    """Of one host."""

    host: str
    seconds: float
    over: bool


class Silences:
    """Feed it how long each host has been silent; it answers with what is new."""

    def __init__(self) -> None:
        self._longest_s: dict[str, float] = {}

    def add(self, silent_s: Mapping[str, float]) -> list[Silence]:
        """`silent_s` is by host."""
        if all(seconds >= TOLD_S for seconds in silent_s.values()):
            return []
        found = []
        for host, seconds in silent_s.items():
            known_s = self._longest_s.get(host)
            if seconds >= TOLD_S:
                self._longest_s[host] = seconds
                if known_s is None:
                    found.append(Silence(host, seconds, over=False))
            elif known_s is not None:
                found.append(Silence(host, self._longest_s.pop(host), over=True))
        return found
