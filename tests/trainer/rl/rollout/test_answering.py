"""The guarantees of prompt_run.py, one_answer.py and answering.py in trainer/rl/rollout."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.rl.rollout.tiny import MODEL, TASK, decoder, engine, rules, weights
from trainer.errors import DataError
from trainer.model.config import MoeConfig
from trainer.rl.ledger_records import Kept
from trainer.rl.messages import Answer
from trainer.rl.payload import PromptRecord
from trainer.rl.rollout.answering import Answering
from trainer.rl.tasks.config import TaskConfig
from trainer.rl.tasks.question import Turn

TURNS = TaskConfig(kind="own", factory=TASK.factory, max_turns=3, retry_text="b", turn_discount=0.5)


def asked(number, lease_id=0, kept=None):
    return Answer(number=number, lease_id=lease_id, kept=kept)


def through_json(kept):
    plain = json.loads(json.dumps(kept.payload))
    return Kept(payload=plain, oldest=kept.oldest, newest=kept.newest)


def finish(answering):
    told = []
    while answering.running:
        told += answering.step()[0]
    return {one.lease_id: PromptRecord.from_plain(one.kept.payload) for one in told}


def answered(numbers, task=TASK, **changes):
    answering = Answering(engine(), rules(task, **changes))
    for lease_id, number in enumerate(numbers):
        answering.begin(asked(number, lease_id))
    return finish(answering)


def same(one, other, but=()):
    for left, right in zip(one.answers, other.answers, strict=True):
        for name, value in vars(left).items():
            if isinstance(value, np.ndarray) and value.dtype == np.float32:
                np.testing.assert_allclose(vars(right)[name], value, atol=1e-4)
            elif name not in but:
                np.testing.assert_array_equal(vars(right)[name], value)


@pytest.mark.parametrize("task", [TASK, TURNS], ids=["one turn", "turns"])
def test_what_is_answered_does_not_depend_on_what_else_is(task):
    together, alone = answered([4, 5, 6], task), answered([5], task)
    same(alone[0], together[1])
    assert together[1].prompt == alone[0].prompt
    seeds_differ = {tuple(a.tokens.tolist()) for a in together[1].answers}
    assert len(seeds_differ) > 1


@pytest.mark.parametrize("task", [TASK, TURNS], ids=["one turn", "turns"])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_an_answer_goes_on_elsewhere_as_it_would_have_here(task, steps):
    whole = answered([5], task)[0]
    first = Answering(engine(), rules(task))
    first.begin(asked(5))
    for _ in range(steps):
        if first.running:
            first.step()
    told = first.under()
    assert first.running, "there is something to go on with"
    second = Answering(engine(), rules(task))
    second.begin(asked(5, 9, through_json(told[0].kept)))
    same(whole, finish(second)[9])


def test_what_is_told_is_told_once_and_nothing_after_giving_up():
    answering = Answering(engine(), rules())
    answering.begin(asked(0, 0))
    answering.begin(asked(1, 1))
    assert answering.under() == [], "no token was drawn"
    answering.step()
    assert [one.lease_id for one in answering.under()] == [0, 1]
    assert answering.under() == []
    answering.give_up((0,))
    answering.step()
    assert {one.lease_id for one in answering.under()} <= {1}
    assert set(finish(answering)) <= {1}
    answering.begin(asked(2, 2))
    answering.give_up(())
    assert answering.running == 0


def test_each_token_bears_the_version_that_drew_it():
    machine = engine()
    answering = Answering(machine, rules(sampling=rules().sampling, samples=2))
    machine.load(4, weights(decoder()))
    answering.begin(asked(5))
    answering.step()
    machine.load(6, weights(decoder(seed=2)))
    (record,) = finish(answering).values()
    versions = [a.versions[a.loss_mask == 1].tolist() for a in record.answers]
    assert all(found == sorted(found) for found in versions)
    assert {v for found in versions for v in found} == {4, 6}
    kept = record.kept()
    assert kept is not None
    assert (kept.oldest, kept.newest) == (4, 6)


def test_an_episode_ends_before_it_outgrows_its_room():
    (record,) = answered([5], TURNS, longest_tokens=9).values()
    for answer in record.answers:
        assert len(answer.tokens) <= 9
        assert answer.ended
        assert answer.score is not None
    assert any(answer.cut for answer in record.answers)


def test_answers_that_are_complete_already_are_told_at_once():
    whole = Answering(engine(), rules())
    whole.begin(asked(5))
    told = []
    while not told:
        told, _ = whole.step()
    other = Answering(engine(), rules())
    (again,) = other.begin(asked(5, 7, through_json(told[0].kept)))
    assert again.kept.payload == told[0].kept.payload
    assert other.running == 0


def test_a_reference_says_what_it_thinks_of_whole_episodes():
    def ones(texts):
        return [np.ones(len(text), np.float32) for text in texts]

    (record,) = answered([5], reference=ones).values()
    for answer in record.answers:
        assert answer.reference_log_probs.tolist() == [1.0] * len(answer.tokens)


@pytest.mark.parametrize("task", [TASK, TURNS], ids=["one turn", "turns"])
def test_experts_are_recorded_for_every_token_but_the_last(task):
    moe = MoeConfig(num_experts=4, top_k=2, expert_intermediate_size=8)
    model = decoder(model=replace(MODEL, num_layers=2, moe=moe))
    answering = Answering(engine(model, record_routing=True), rules(task))
    answering.begin(asked(5))
    (record,) = finish(answering).values()
    for answer in record.answers:
        assert answer.routing.shape == (len(answer.tokens) - 1, 2, 2)
        assert set(np.unique(answer.routing)) <= set(range(4))


class Silent:
    def step(self, tokens):
        return Turn(False, ())


def silent(task, codec, question):
    return Silent()


def test_an_environment_that_goes_on_without_a_word_is_refused():
    factory = "tests.trainer.rl.rollout.test_answering:silent"
    task = TaskConfig(kind="own", factory=TASK.factory, environment=factory)
    with pytest.raises(DataError, match="answer at least one token"):
        answered([5], task)
