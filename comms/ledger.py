"""How much this rank sends and how long it waits for it, per axis and operation."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Ledger:
    """Counts of one rank since the last `take`. Used by the training thread alone."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._sent: defaultdict[str, int] = defaultdict(int)
        self._waited_s = 0.0

    def sent(self, axis: str, operation: str, sent_bytes: int) -> None:
        """Count one collective's bytes."""
        self._sent[f"{axis}/{operation}"] += sent_bytes

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as communication that compute did not hide."""
        begin_s = self._clock()
        try:
            yield
        finally:
            self._waited_s += self._clock() - begin_s

    @property
    def waited_s(self) -> float:
        """Seconds waited since the last `take`."""
        return self._waited_s

    def take(self) -> tuple[dict[str, int], float]:
        """Bytes per axis and operation, and seconds waited; both start again at zero."""
        counts = dict(self._sent), self._waited_s
        self._sent.clear()
        self._waited_s = 0.0
        return counts
