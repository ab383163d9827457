"""New weights of one channel, taken beside decoding in a thread of its own.

Guarantees, each asserted in tests/trainer/rl/rollout/test_subscription.py:
- what `take` loads is one version, whole, however many arrive meanwhile;
- a version that came is replaced by a later one where nobody loaded it;
- a channel that fails says why, once, and what the worker samples with is untouched.
"""

import threading
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from comms.weights.agreement import WeightTransferError
from comms.weights.channel import Update, WeightChannel
from comms.weights.meeting import Meeting
from comms.weights.plan import Member
from trainer.rl.messages import Join

_LOOK_S = 0.02
"""Between two looks for an announced version."""


class Subscription:
    """To the channel of one `Join`."""

    def __init__(self, join: Join, member: Member, *, deadline_s: float) -> None:
        self._join = join
        self._member = member
        self._deadline_s = deadline_s
        self._staging = threading.Lock()
        self._staged: Update | None = None
        self._failure: str | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"subscribe {self.prefix}", daemon=True
        )
        self._thread.start()

    @property
    def prefix(self) -> str:
        """Of the channel."""
        return self._join.channel.prefix

    @property
    def waiting(self) -> bool:
        """Whether there is a version to load."""
        return self._staged is not None

    def take(self, load: Callable[[Update], None]) -> Update | None:
        """Load the version that came, if one did and none is on its way. Does not wait."""
        if self._staged is None or not self._staging.acquire(blocking=False):
            return None
        try:
            update, self._staged = self._staged, None
            if update is not None:
                load(update)
            return update
        finally:
            self._staging.release()

    def failure(self) -> str | None:
        """Why the channel ended, told once."""
        reason, self._failure = self._failure, None
        return reason

    def leave(self) -> None:
        """Take nothing more. The thread ends by itself, at the latest with its deadline."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            self._follow()
        except (WeightTransferError, dist.DistError, OSError) as error:
            if not self._stopped.is_set():
                self._failure = str(error)

    def _follow(self) -> None:
        place = self._join.channel
        store = dist.TCPStore(
            place.host,
            place.port,
            is_master=False,
            timeout=timedelta(seconds=self._deadline_s),
            wait_for_workers=False,
        )
        channel = WeightChannel.open(
            Meeting(store, self._join.rank, place.names, place.prefix),
            self._member,
            deadline_s=self._deadline_s,
        )
        try:
            while not self._stopped.wait(_LOOK_S):
                if channel.announced():
                    self._receive(channel)
        finally:
            channel.close()

    def _receive(self, channel: WeightChannel) -> None:
        # What is staged is overwritten, so nobody may be reading it.
        with self._staging:
            self._staged = None
            self._staged = channel.subscribe(deadline_s=self._deadline_s)
