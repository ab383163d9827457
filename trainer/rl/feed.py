"""Steps by rewards: batches as the conductor hands them out, prepared one ahead.

Guarantees, each asserted in tests/trainer/rl/test_feed.py:
- all ranks take the same batches and open the same channels in the same order, which is that of
  the first rank's inbox;
- nothing is trained twice and nothing is left out: a batch of another version than the next is
  refused;
- an order that comes while a channel is opened is heard then, not after it;
- while nothing comes, being asked to stop ends the wait.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Event
from typing import TypeAlias

import torch.distributed as dist

from comms.groups import broadcast_bytes
from trainer.errors import InfrastructureError
from trainer.feed import AskedToStop, Feed, StepWork
from trainer.rl.codec import Order, Pause, Stop, decode_order, encode_order
from trainer.rl.mail import TrainerMail
from trainer.rl.mailbox import MailboxClosedError
from trainer.rl.messages import Publish, TrainerReady, TrainOn
from trainer.rl.publishing import Publisher
from trainer.rl.work import WorkMaker

LOOK_S = 0.2
"""Between two looks at whether the run was asked to stop."""

CLOSE_S = 5.0
"""Longest wait for what is being prepared."""

Found: TypeAlias = StepWork | Publish | Stop

PAUSE_S = 30.0
"""After so long without an order the other ranks hear that there is none yet: a collective may not
wait for ever."""


class Orders:
    """What the conductor wants next, the same on all ranks. One thread calls it."""

    def __init__(
        self,
        mail: TrainerMail | None,
        group: dist.ProcessGroup,
        should_stop: Callable[[], bool],
    ) -> None:
        """`mail` is the first rank's; the others hear from it over `group`, which nothing else uses
        meanwhile."""
        self._mail = mail
        self._group = group
        self._should_stop = should_stop
        self._closing = Event()

    def close(self) -> None:
        """End the wait, on all ranks, with an order to stop."""
        self._closing.set()

    def next(self) -> TrainOn | Publish | Stop:
        """Wait for it. All ranks call it."""
        while True:
            payload = b"" if self._mail is None else encode_order(self._look(self._mail))
            order = decode_order(broadcast_bytes(payload, group=self._group))
            if not isinstance(order, Pause):
                return order

    def _look(self, mail: TrainerMail) -> Order:
        until_s = time.monotonic() + PAUSE_S
        while time.monotonic() < until_s:
            if self._closing.is_set() or self._should_stop():
                return Stop()
            try:
                message = mail.inbox.take(LOOK_S)
            except MailboxClosedError:
                return Stop()
            if message is not None:
                return message
        return Pause()


class RewardFeed:
    """The steps after the supervised ones. All ranks call it alike, from the training thread."""

    def __init__(
        self,
        orders: Orders,
        maker: WorkMaker,
        publisher: Publisher,
        *,
        mail: TrainerMail | None,
        trainers: int,
        supervised_steps: int,
        last_step: int,
    ) -> None:
        self._orders = orders
        self._maker = maker
        self._publisher = publisher
        self._mail = mail
        self._trainers = trainers
        self._supervised_steps = supervised_steps
        self._last_step = last_step
        self._next: Future[Found] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")

    def phase(self, step: int) -> str:
        """Waiting for those that sample."""
        return "rollouts"

    def take(self, step: int) -> StepWork:
        """Wait for the batch of `step`, opening channels meanwhile where that is asked for, and
        begin to prepare the one after it. Raises AskedToStop, and InfrastructureError for a batch
        of another step."""
        begin_s = time.perf_counter()
        if self._next is None:
            self._report_ready(step)
            self._next = self._thread.submit(self._prepare, step)
        while isinstance(found := self._next.result(), Publish):
            # Before the opening, which may wait for a worker that is gone: the next order says so.
            self._next = self._thread.submit(self._prepare, step)
            self._publisher.open(found.channel, self._version(step))
        if isinstance(found, Stop):
            raise AskedToStop(f"step {step} was not begun")
        if step < self._last_step:
            self._next = self._thread.submit(self._prepare, step + 1)
        waited_s = time.perf_counter() - begin_s
        own = {"timing_s/trainer_wait": waited_s, **self._publisher.take_figures()}
        known = {**found.figures.known, **own}
        return replace(found, figures=replace(found.figures, known=known))

    def close(self) -> None:
        """End the wait for a batch that is not trained any more.

        All ranks stop waiting once the first does. One that closes alone, for an error of its own,
        leaves the thread behind: its error must not wait for an order that never comes.
        """
        self._orders.close()
        if self._next is not None:
            wait([self._next], CLOSE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _report_ready(self, step: int) -> None:
        if self._mail is None:
            return
        # What is still in was meant for ranks that are gone, perhaps at another step.
        self._mail.inbox.take_all()
        self._mail.outbox.put(TrainerReady(version=self._version(step), trainers=self._trainers))

    def _version(self, step: int) -> int:
        """The weights' before `step`."""
        return step - 1 - self._supervised_steps

    def _prepare(self, step: int) -> Found:
        order = self._orders.next()
        if isinstance(order, Publish):
            self._publisher.expect(order.channel)
        if not isinstance(order, TrainOn):
            return order
        if order.version != self._version(step):
            raise InfrastructureError(
                f"the conductor handed out the batch of version {order.version}, but the weights "
                f"are of version {self._version(step)}; start the run again to go on from its "
                "newest checkpoint"
            )
        return self._maker.work(step, order)


class PhasedFeed:
    """Supervised steps first, then those by rewards."""

    def __init__(self, supervised: Feed, rewards: Feed, *, supervised_steps: int) -> None:
        self._supervised = supervised
        self._rewards = rewards
        self._supervised_steps = supervised_steps

    def phase(self, step: int) -> str:
        """Of the feed that has `step`."""
        return self._of(step).phase(step)

    def take(self, step: int) -> StepWork:
        """Of the feed that has `step`."""
        return self._of(step).take(step)

    def close(self) -> None:
        """Close both."""
        self._supervised.close()
        self._rewards.close()

    def _of(self, step: int) -> Feed:
        return self._supervised if step <= self._supervised_steps else self._rewards
