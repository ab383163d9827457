"""Who a worker works with, in one process: a store, trainers of plain torch, and the conductor."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from comms.weights.agreement import WeightTransferError
from comms.weights.channel import WeightChannel
from comms.weights.meeting import Meeting
from comms.weights.plan import Member
from tests.trainer.rl.rollout.tiny import decoder
from trainer.rl.mailbox import Mailbox
from trainer.rl.messages import (
    ChannelPlace,
    Committed,
    Join,
    Publish,
    Published,
    PublishFailed,
    TrainerReady,
)
from trainer.rl.rollout.weights import taken_parts
from trainer.rl.rollout.worker import run_rollouts


@contextmanager
def channel_store():
    """Host and port of a store for channels."""
    server = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False
    )
    yield "127.0.0.1", server.port


def member_channel(place, rank, member, deadline_s=20.0):
    store = dist.TCPStore(
        place.host,
        place.port,
        is_master=False,
        timeout=timedelta(seconds=20),
        wait_for_workers=False,
    )
    meeting = Meeting(store, rank, place.names, place.prefix)
    return WeightChannel.open(meeting, member, deadline_s=deadline_s)


class PlainTrainer:
    """Policy gradient in ten lines, on one rank, publishing after every step."""

    def __init__(self, steps, lr=0.03, version=0):
        self.model = decoder()
        self.model.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)
        self.steps, self.version = steps, version
        self.inbox, self.outbox = Mailbox(), Mailbox()
        self.batches = []
        self._channel = self._place = None

    def run(self):
        self.outbox.put(TrainerReady(version=self.version, trainers=1))
        while self.version < self.steps:
            message = self.inbox.take(0.1)
            if isinstance(message, Publish):
                self._open(message.channel)
            elif message is not None:
                self._train(message)

    def _open(self, place):
        self._place = place
        member = Member(host="here", gives=taken_parts(self.model))
        try:
            self._channel = member_channel(place, 0, member, deadline_s=10.0)
        except WeightTransferError as error:
            self._fail(error)
            return
        self._publish()

    def _publish(self):
        if self._channel is None:
            return
        weights = {name: [value.detach()] for name, value in self.model.state_dict().items()}
        try:
            bill = self._channel.publish(self.version, weights, deadline_s=5.0)
        except WeightTransferError as error:
            self._fail(error)
            return
        self.outbox.put(
            Published(
                version=self.version,
                sent_bytes=bill.sent_bytes,
                seconds={"total": bill.total_s},
                prefix=self._place.prefix,
            )
        )

    def _fail(self, error):
        self._channel = None
        culprits = tuple(self._place.names[rank] for rank in error.culprits)
        self.outbox.put(
            PublishFailed(
                version=self.version,
                reason=str(error),
                culprits=culprits,
                prefix=self._place.prefix,
            )
        )

    def _train(self, batch):
        assert batch.version == self.version
        self.batches.append(batch)
        begun_s = time.perf_counter()
        self.optimizer.zero_grad()
        for sample in batch.samples:
            tokens_T = torch.from_numpy(sample.tokens).long()
            logits_TV = self.model.logits(tokens_T, torch.arange(len(tokens_T)), (len(tokens_T),))
            log_p_T = logits_TV[:-1].log_softmax(1).gather(1, tokens_T[1:, None]).squeeze(1)
            mask_T = torch.from_numpy(sample.loss_mask[1:]).bool()
            (-sample.advantage * log_p_T[mask_T].sum() / len(batch.samples)).backward()
        self.optimizer.step()
        committed = Committed(
            version=self.version,
            saved=None,
            trained_s=time.perf_counter() - begun_s,
            waited_s=0.0,
        )
        self.version += 1
        self.outbox.put(committed)
        self._publish()


@dataclass
class Hand:
    """A worker in a thread."""

    name: str
    job: object
    inbox: Mailbox = field(default_factory=Mailbox)
    outbox: Mailbox = field(default_factory=Mailbox)
    killed: bool = False
    error: BaseException | None = None

    def start(self):
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def _run(self):
        try:
            run_rollouts(
                self.job,
                name=self.name,
                host="here",
                device="cpu",
                threads=1,
                inbox=self.inbox,
                outbox=self.outbox,
                should_stop=lambda: self.killed,
            )
        except BaseException as error:
            self.error = error
            raise


class Stage:
    """The conductor's messages carried between mailboxes, as the driver of a run does it."""

    def __init__(self, conductor, trainer, job):
        self.conductor, self.trainer, self.job = conductor, trainer, job
        self.hands, self.events = {}, []
        self.trainer_thread = threading.Thread(target=trainer.run, daemon=True)

    def bring_up(self, name):
        self.hands[name] = Hand(name, self.job).start()
        self.do(self.conductor.rollout_up(name, time.monotonic()))

    def kill(self, name):
        """As a process that dies: nothing it says from now on is heard."""
        hand = self.hands.pop(name)
        hand.killed = True
        self.do(self.conductor.rollout_lost(name, "killed", time.monotonic()))

    def do(self, actions):
        self.trainer.inbox.put(*actions.to_trainer)
        for name, messages in actions.to_rollouts.items():
            if name in self.hands:
                self.hands[name].inbox.put(*messages)
        self.events += actions.events
        for name in actions.replace:
            self.hands.pop(name).killed = True
            self.bring_up(f"{name}+")

    def turn(self):
        now_s = time.monotonic()
        for message in self.trainer.outbox.take_all(0.01):
            self.do(self.conductor.on_trainer(message, now_s))
        for name in list(self.hands):
            for message in self.hands[name].outbox.take_all():
                if name in self.hands:
                    self.do(self.conductor.on_rollout(name, message, now_s))
            assert name not in self.hands or self.hands[name].error is None
        self.do(self.conductor.tick(now_s))

    def run(self, until, limit_s=150.0):
        if not self.trainer_thread.is_alive():
            self.trainer_thread.start()
        end_s = time.monotonic() + limit_s
        while not until():
            assert time.monotonic() < end_s, (self.conductor.status(), self.events)
            self.turn()

    def close(self):
        for hand in self.hands.values():
            hand.inbox.close()
        for hand in self.hands.values():
            hand.thread.join(20.0)
        self.trainer_thread.join(20.0)


class Giver:
    """Rank 0 of a channel, in a thread, which only gives."""

    def __init__(self, store, workers=("w0",), prefix="weights/0"):
        host, port = store
        names = ("trainer 0", *workers)
        self.place = ChannelPlace(host=host, port=port, prefix=prefix, names=names, trainers=1)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._channel = None

    def join(self, rank=1):
        return Join(channel=self.place, rank=rank)

    def give(self, version, model):
        """Resolves once all have it."""
        return self._thread.submit(self._give, version, model)

    def _give(self, version, model):
        if self._channel is None:
            member = Member(host="here", gives=taken_parts(model))
            self._channel = member_channel(self.place, 0, member)
        weights = {name: [value.detach()] for name, value in model.state_dict().items()}
        return self._channel.publish(version, weights, deadline_s=20.0)

    def close(self):
        self._thread.submit(lambda: self._channel and self._channel.close()).result()
        self._thread.shutdown()
