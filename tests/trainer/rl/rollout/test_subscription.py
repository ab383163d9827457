"""The guarantees of trainer/rl/rollout/subscription.py."""

import time

import torch

from comms.weights.plan import Member
from tests.trainer.rl.rollout.partners import Giver, channel_store
from tests.trainer.rl.rollout.tiny import decoder
from trainer.rl.rollout.subscription import Subscription
from trainer.rl.rollout.weights import taken_parts


def subscribed(giver, model):
    member = Member(host="here", takes=taken_parts(model))
    return Subscription(giver.join(), member, deadline_s=20.0)


def take(subscription):
    found = {}

    def load(update):
        found.update({name: value.clone() for name, value in update.whole()})

    for _ in range(2000):
        update = subscription.take(load)
        if update is not None:
            return update.version, found
        time.sleep(0.01)
    raise AssertionError("nothing came")


def test_versions_are_loaded_whole_and_later_ones_replace_those_that_nobody_loaded():
    first, second, third = decoder(1), decoder(2), decoder(3)
    with channel_store() as store:
        giver = Giver(store)
        subscription = subscribed(giver, first)
        giver.give(4, first).result()
        giver.give(5, second).result()
        version, found = take(subscription)
        assert version == 5
        assert all(torch.equal(found[n], v) for n, v in second.state_dict().items())
        assert not subscription.waiting
        assert subscription.take(lambda update: None) is None
        giver.give(6, third).result()
        version, found = take(subscription)
        assert version == 6
        assert all(torch.equal(found[n], v) for n, v in third.state_dict().items())
        assert subscription.failure() is None
        subscription.leave()
        giver.close()


def test_a_channel_that_fails_says_why_once():
    model = decoder()
    with channel_store() as (host, port):
        giver = Giver((host, port))
        member = Member(host="here", takes=taken_parts(model))
        subscription = Subscription(giver.join(), member, deadline_s=0.3)
        reason = None
        for _ in range(2000):
            reason = subscription.failure()
            if reason is not None:
                break
            time.sleep(0.01)
        assert reason is not None
        assert "the channel for weights was not opened: trainer 0 said nothing" in reason
        assert subscription.failure() is None
        assert not subscription.waiting
