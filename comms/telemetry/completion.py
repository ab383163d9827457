"""When collectives end that a device works off behind the back of its host.

On CUDA a wait returns at once: it only tells the stream to wait. So what is waited for is over when
the stream has got there, which an event tells.

Guarantees, each asserted in tests/comms/telemetry/test_completion.py:
- a collective ends when its stream has passed it, not when the host has;
- a stream that hangs does not hide the ends of another.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch


class Passed(Protocol):
    """A point in a stream."""

    def query(self) -> bool:
        """Whether the stream has passed it."""


class DeviceEnds:
    """Collectives that the host has waited for and the device may not have finished. Any thread
    may call all of it."""

    def __init__(self, end: Callable[[int], None]) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._streams: dict[int, deque[tuple[Passed, tuple[int, ...]]]] = {}

    def expect_here(self, tokens: tuple[int, ...]) -> None:
        """They end when the current stream of the calling thread has got this far."""
        event = torch.cuda.Event()
        event.record()
        self.expect(torch.cuda.current_stream().cuda_stream, event, tokens)

    def expect(self, stream: int, event: Passed, tokens: tuple[int, ...]) -> None:
        """They end when `stream` has passed `event`."""
        with self._lock:
            self._streams.setdefault(stream, deque()).append((event, tokens))

    def poll(self) -> None:
        """Say which have ended since the last look."""
        with self._lock:
            for waiting in self._streams.values():
                while waiting and waiting[0][0].query():
                    for token in waiting.popleft()[1]:
                        self._end(token)
