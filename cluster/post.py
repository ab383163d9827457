"""Messages to and from a worker process, over calls that may be made again. Neither torch nor ray.

Guarantees, each asserted in tests/cluster/test_post.py:
- every message arrives once and in the order in which it was sent, however often a call is made
  again because its answer was lost;
- a call of an earlier piece of work changes nothing.
"""

import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

from trainer.rl.mailbox import Mailbox

In = TypeVar("In")
Out = TypeVar("Out")


class Post(Generic[In, Out]):
    """The worker's end: the mailboxes of one piece of work, and who may use them from outside."""

    def __init__(self, work: int = 0) -> None:
        self.inbox: Mailbox[In] = Mailbox()
        self.outbox: Mailbox[Out] = Mailbox()
        self._work = work
        self._lock = threading.Lock()
        self._collecting = threading.Lock()
        self._delivered = 0
        self._first = 0
        self._kept: list[Out] = []

    def deliver(self, work: int, first: int, messages: Sequence[In]) -> None:
        """Take in messages; `first` is the number of the first of them, counted from 0."""
        if work != self._work:
            return
        with self._lock:
            fresh = messages[max(0, self._delivered - first) :]
            self.inbox.put(*fresh)
            self._delivered += len(fresh)

    def collect(self, work: int, first: int, timeout_s: float) -> tuple[Out, ...]:
        """Messages from number `first` on, waiting up to `timeout_s` for one. Those before it have
        arrived and are kept no longer."""
        if work != self._work:
            return ()
        with self._collecting:
            del self._kept[: max(0, first - self._first)]
            self._first = max(self._first, first)
            self._kept += self.outbox.take_all(0.0 if self._kept else timeout_s)
            return tuple(self._kept)

    def hang_up(self, work: int) -> None:
        """Nobody will send the work anything any more."""
        if work == self._work:
            self.inbox.close()
