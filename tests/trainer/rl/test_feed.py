"""Orders of the first rank's inbox, on two ranks."""

import threading
import time
from dataclasses import dataclass

import pytest
import torch.distributed as dist

from parallel.layout import Layout
from tests.ranks import run_on_ranks
from tests.trainer.rl.samples import make_samples
from trainer.errors import InfrastructureError
from trainer.feed import AskedToStop
from trainer.planner.plan import Round, SequenceGroup, StepPlan
from trainer.rl.feed import Orders, PhasedFeed, RewardFeed
from trainer.rl.mail import TrainerMail
from trainer.rl.mailbox import Mailbox
from trainer.rl.messages import ChannelPlace, Publish, TrainerReady, TrainOn
from trainer.rl.work import WorkMaker


class Channels:
    """Notes what a publisher is asked for."""

    def __init__(self):
        self.heard = []
        self.expected = []

    def open(self, place, version):
        """One that misses a worker waits until another is asked for."""
        self.heard.append((place.prefix, version))
        if place.prefix.startswith("gone"):
            until_s = time.monotonic() + 10.0
            while self.expected[-1] == place.prefix and time.monotonic() < until_s:
                time.sleep(0.01)

    def expect(self, place):
        self.expected.append(place.prefix)
        self.heard.append(f"expect {place.prefix}")

    def take_figures(self):
        return {"publish/seconds": 0.5}


def publish(prefix):
    return Publish(
        channel=ChannelPlace(host="a", port=1, prefix=prefix, names=("trainer 0",), trainers=1)
    )


def batch(version):
    return TrainOn(version=version, samples=make_samples(2 + version), figures={"accuracy": 0.1})


def one_plan(step, lengths):
    everything = SequenceGroup(first_rank=0, size=1, sequences=tuple(range(len(lengths))))
    return StepPlan(step=step, layout=Layout(), rounds=(Round(groups=(everything,)),))


@dataclass
class Made:
    feed: RewardFeed
    mail: TrainerMail
    channels: Channels
    stop: threading.Event


def make(rank, *, supervised=2, last=6):
    mail, stop, channels = TrainerMail(Mailbox(), Mailbox()), threading.Event(), Channels()
    own = mail if rank == 0 else None
    maker = WorkMaker(
        data_rank=rank,
        longest_tokens=99,
        padding_token=0,
        max_response_tokens=9,
        choose=one_plan,
    )
    feed = RewardFeed(
        Orders(own, dist.group.WORLD, stop.is_set),
        maker,
        channels,
        mail=own,
        trainers=2,
        supervised_steps=supervised,
        last_step=last,
    )
    return Made(feed, mail, channels, stop)


def checks(rank):
    found = {}
    made = make(rank)
    made.mail.inbox.put(batch(4))  # of a process that is gone
    if rank == 0:

        def answer():
            found["ready"] = made.mail.outbox.take(10.0)
            made.mail.inbox.put(publish("w/0"), batch(0), batch(1), publish("gone"), publish("w/1"))
            made.mail.inbox.put(batch(2))

        threading.Thread(target=answer, daemon=True).start()
    begun_s = time.monotonic()
    works = [made.feed.take(step) for step in (3, 4, 5)]
    found["taken_s"] = time.monotonic() - begun_s
    found["works"] = [(work.plan.step, work.num_tokens, len(work.batches)) for work in works]
    found["figures"] = works[0].figures.known
    found["channels"] = made.channels.heard
    made.stop.set()
    began_s = time.monotonic()
    with pytest.raises(AskedToStop):
        made.feed.take(6)
    made.feed.close()
    found["stopped_s"] = time.monotonic() - began_s
    skipping = make(rank, supervised=0)
    if rank == 0:
        skipping.mail.outbox.put("nothing")
        threading.Timer(0.3, skipping.mail.inbox.put, [batch(1)]).start()
    with pytest.raises(InfrastructureError, match="batch of version 1, but the weights are of"):
        skipping.feed.take(1)
    skipping.feed.close()
    closed = make(rank)
    if rank == 0:
        threading.Timer(0.3, closed.mail.inbox.close).start()
    with pytest.raises(AskedToStop):
        closed.feed.take(3)
    closed.feed.close()
    return found


def test_all_ranks_take_what_the_first_is_given_in_its_order():
    first, second = run_on_ranks(2, checks)
    assert first["ready"] == TrainerReady(version=0, trainers=2)
    tokens = [sum(s.num_tokens - 1 for s in batch(version).samples) for version in range(3)]
    assert first["works"] == [(3 + i, tokens[i], 1) for i in range(3)] == second["works"]
    opened = [("w/0", 0), ("gone", 2), ("w/1", 2)]
    for channels in (first["channels"], second["channels"]):
        assert [one for one in channels if isinstance(one, tuple)] == opened
        assert channels.index("expect w/0") < channels.index(opened[0])
    assert max(first["taken_s"], second["taken_s"]) < 8.0, "heard of w/1 while gone was opened"
    assert first["figures"]["accuracy"] == 0.1
    assert first["figures"]["publish/seconds"] == 0.5
    assert first["figures"]["timing_s/trainer_wait"] > 0.0
    assert max(first["stopped_s"], second["stopped_s"]) < 4.0


class Source:
    def __init__(self, name):
        self.name, self.closed = name, False

    def phase(self, step):
        return self.name

    def take(self, step):
        return self.name, step

    def close(self):
        self.closed = True


def test_supervised_steps_come_first():
    data, rewards = Source("data"), Source("rollouts")
    feed = PhasedFeed(data, rewards, supervised_steps=2)
    assert [feed.take(step)[0] for step in (1, 2, 3)] == ["data", "data", "rollouts"]
    assert [feed.phase(step) for step in (2, 3)] == ["data", "rollouts"]
    feed.close()
    assert data.closed
    assert rewards.closed
