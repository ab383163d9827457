"""Messages between threads, oldest first."""

import time
from collections import deque
from threading import Condition
from typing import Generic, TypeVar

M = TypeVar("M")


class MailboxClosedError(RuntimeError):
    """Nobody will put anything in any more."""


class Mailbox(Generic[M]):
    """Unbounded: what goes through is bounded by leases and steps."""

    def __init__(self) -> None:
        self._messages: deque[M] = deque()
        self._changed = Condition()
        self._closed = False

    def put(self, *messages: M) -> None:
        """Never waits."""
        with self._changed:
            self._messages.extend(messages)
            self._changed.notify_all()

    def take(self, timeout_s: float | None = None) -> M | None:
        """The oldest message; None where there is none within `timeout_s`.

        Raises MailboxClosedError where it is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._messages or self._closed, timeout_s)
            if self._messages:
                return self._messages.popleft()
            if self._closed:
                raise MailboxClosedError("the mailbox is closed")
            return None

    def take_all(self, timeout_s: float = 0.0) -> list[M]:
        """All messages that are there, waiting up to `timeout_s` for the first."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            left_s = max(0.0, until_s - time.monotonic())
            self._changed.wait_for(lambda: self._messages or self._closed, left_s)
            found = list(self._messages)
            self._messages.clear()
        return found

    def close(self) -> None:
        """What is in can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
