"""A worker that samples: prompts in, answers out, weights from a channel beside decoding.

Guarantees, each asserted in tests/trainer/rl/rollout/test_worker.py:
- nothing is sampled before the first weights, and every token bears the version that drew it;
- new weights are loaded between two tokens, or, draining, once no prompt is under way; what is
  asked meanwhile begins with them;
- an answer that goes on from what another worker told of is the one that worker would have given.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from comms.weights.channel import Update
from comms.weights.plan import Member
from trainer.rl.engine.engine import Engine
from trainer.rl.mailbox import Mailbox, MailboxClosedError
from trainer.rl.messages import (
    Answer,
    FromRollout,
    GiveUp,
    Join,
    Pulse,
    ToRollout,
    Updated,
    UpdateFailed,
)
from trainer.rl.rollout.answering import Answering
from trainer.rl.rollout.parts import Parts, RunSections, build_parts
from trainer.rl.rollout.subscription import Subscription

_PULSE_S = 1.0
_TELL_S = 5.0
"""Between two tellings of unfinished answers: what is lost with a worker is no older."""

_WAIT_S = 0.05
"""For a message, where there is nothing else to do."""


def run_rollouts(
    job: RunSections,
    *,
    name: str,
    host: str,
    device: str,
    threads: int,
    inbox: Mailbox[ToRollout],
    outbox: Mailbox[FromRollout],
    should_stop: Callable[[], bool],
) -> None:
    """Answer prompts until `inbox` is closed or `should_stop`.

    `name` is the worker's in channels' places, `host` the machine's, as the ranks that train name
    theirs; `device` is torch's name of it, `threads` the compute threads. The tokenizer is read
    from the run folder, where the first rank that trains writes it; it is waited for.
    """
    torch.set_num_threads(threads)
    parts = build_parts(job, host=host, device=torch.device(device), should_stop=should_stop)
    if parts is None:
        return
    worker = RolloutWorker(parts, name=name, inbox=inbox, outbox=outbox)
    try:
        while not should_stop() and worker.turn():
            pass
    finally:
        worker.leave()


@dataclass
class Times:
    """Since the last pulse."""

    drawn_tokens: int = 0
    busy_s: float = 0.0
    idle_s: float = 0.0
    begun_s: float = field(default_factory=time.perf_counter)


class RolloutWorker:
    """The loop of one worker, turn by turn. One thread calls it."""

    def __init__(
        self,
        parts: Parts,
        *,
        name: str,
        inbox: Mailbox[ToRollout],
        outbox: Mailbox[FromRollout],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._parts = parts
        self._engine: Engine = parts.engine
        self._answering = Answering(parts.engine, parts.rules)
        self._inbox, self._outbox, self._clock = inbox, outbox, clock
        self._subscription: Subscription | None = None
        self._held: deque[Answer] = deque()
        self._version: int | None = None
        self._times = Times()
        self._pulsed_s = self._told_s = clock()

    def turn(self) -> bool:
        """Take messages and new weights, then draw a token for every answer; False at the end."""
        try:
            self._take_messages()
        except MailboxClosedError:
            return False
        self._take_weights()
        if self._answering.running:
            self._step()
        self._tell()
        return True

    def leave(self) -> None:
        """Leave the channel."""
        if self._subscription is not None:
            self._subscription.leave()

    def _take_messages(self) -> None:
        begun_s = time.perf_counter()
        waits = 0.0 if self._answering.running else _WAIT_S
        message = self._inbox.take(waits)
        self._times.idle_s += time.perf_counter() - begun_s
        while message is not None:
            self._obey(message)
            message = self._inbox.take(0.0)

    def _obey(self, message: ToRollout) -> None:
        match message:
            case Join():
                self.leave()
                member = Member(host=self._parts.host, takes=self._parts.takes)
                deadline_s = self._parts.publish_within_s
                self._subscription = Subscription(message, member, deadline_s=deadline_s)
            case GiveUp():
                wanted = set(message.lease_ids)
                held = [a for a in self._held if wanted and a.lease_id not in wanted]
                self._held = deque(held)
                self._answering.give_up(message.lease_ids)
            case Answer():
                self._held.append(message)

    def _take_weights(self) -> None:
        subscription = self._subscription
        if subscription is None:
            self._begin_held()
            return
        reason = subscription.failure()
        if reason is not None:
            self._outbox.put(UpdateFailed(reason=reason, prefix=subscription.prefix))
        drains = self._parts.drains and subscription.waiting
        if not (drains and self._answering.running):
            if subscription.waiting and self._parts.reference is not None:
                self._parts.reference.prepare()
            begun_s = time.perf_counter()
            update = subscription.take(self._load)
            if update is not None:
                self._say_updated(update, subscription.prefix, time.perf_counter() - begun_s)
            self._begin_held()

    def _begin_held(self) -> None:
        while self._held and self._version is not None:
            begun_s = time.perf_counter()
            self._outbox.put(*self._answering.begin(self._held.popleft()))
            self._times.busy_s += time.perf_counter() - begun_s

    def _load(self, update: Update) -> None:
        self._engine.load(update.version, update.whole())
        if self._parts.reference is not None:
            self._parts.reference.settle(update.version)
        self._version = update.version

    def _say_updated(self, update: Update, prefix: str, paused_s: float) -> None:
        self._outbox.put(
            Updated(
                version=update.version,
                paused_s=paused_s,
                received_bytes=update.bill.received_bytes,
                prefix=prefix,
            )
        )

    def _step(self) -> None:
        begun_s = time.perf_counter()
        answered, drawn = self._answering.step()
        self._outbox.put(*answered)
        self._times.drawn_tokens += drawn
        self._times.busy_s += time.perf_counter() - begun_s

    def _tell(self) -> None:
        now_s = self._clock()
        if now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            self._outbox.put(*self._answering.under())
        if now_s - self._pulsed_s >= _PULSE_S:
            self._pulsed_s = now_s
            self._outbox.put(self._pulse())

    def _pulse(self) -> Pulse:
        times, self._times = self._times, Times()
        stats = self._engine.stats()
        return Pulse(
            version=self._version,
            running=self._answering.running,
            drawn_tokens=times.drawn_tokens,
            busy_s=times.busy_s,
            idle_s=times.idle_s,
            figures={"rollout/kv_used": 1.0 - stats.free_blocks / max(1, stats.blocks)},
        )
