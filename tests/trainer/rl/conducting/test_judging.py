"""The guarantees of trainer/rl/conducting/judging.py."""

from dataclasses import replace
from math import nan

from tests.trainer.rl.conducting.groups import answer, record
from trainer.rl.conducting.judging import Judged, Judging
from trainer.rl.config import RlConfig
from trainer.rl.groups import Use
from trainer.rl.ledger_records import Kept
from trainer.rl.rewards.config import RewardConfig
from trainer.rl.rewards.outcome import Fault, FaultKind, RewardRequest, RewardResult

OWN = RlConfig(samples_per_prompt=2)
ASKS = RlConfig(samples_per_prompt=2, reward=RewardConfig(function="rewards:score"))


def finished(number=0, scores=(0.0, 1.0)):
    return record(number, [answer(score=score) for score in scores])


def asked(judging, made):
    request = judging.take(made)
    assert isinstance(request, RewardRequest)
    return request


def test_the_environments_scores_are_the_rewards_where_no_function_is_named():
    judged = Judging(OWN).take(finished(4))
    assert isinstance(judged, Judged)
    assert (judged.number, judged.rewards, judged.verdict.use) == (4, (0.0, 1.0), Use.TRAINED)


def test_a_function_is_asked_with_the_texts_and_its_rewards_count():
    judging = Judging(ASKS)
    request = asked(judging, finished(4))
    assert (request.prompt, request.completions) == ("prompt 4", ("text 0.0", "text 1.0"))
    assert 4 not in judging
    judged = judging.result(RewardResult(number=request.number, rewards=(2.0, 3.0)))
    assert judged is judging[4]
    assert judged.rewards == (2.0, 3.0)


def test_rewards_for_earlier_answers_to_the_same_prompt_are_refused():
    judging = Judging(ASKS)
    first = asked(judging, finished(4))
    assert judging.retain([]) == []
    second = asked(judging, finished(4))
    assert first.number != second.number
    assert judging.result(RewardResult(number=first.number, rewards=(1.0, 0.0))) is None
    assert 4 not in judging
    assert judging.result(RewardResult(number=second.number, rewards=(1.0, 0.0))) is not None
    assert judging.result(RewardResult(number=second.number, rewards=(0.0, 0.0))) is None
    assert judging[4].rewards == (1.0, 0.0)


def test_judgements_outlive_training_that_goes_back_with_the_same_answers():
    judging = Judging(OWN)
    same, other = finished(1), finished(2)
    judging.take(same)
    judging.take(other)
    assert other.kept is not None
    again = replace(other, kept=replace(other.kept))
    assert judging.retain([same, again]) == [again]
    assert 1 in judging
    assert 2 not in judging
    judging.forget([1, 5])
    assert 1 not in judging


def test_what_has_no_rewards_or_cannot_be_read_is_a_fault_with_its_reason():
    judging = Judging(OWN)
    unread = replace(finished(3), kept=Kept(payload={"answers": 1}, oldest=0, newest=0))
    for made, words in (
        (finished(1, (nan, 1.0)), "a reward is nan"),
        (finished(2, (1.0,)), "1 rewards for 2 samples"),
        (unread, "cannot be read"),
    ):
        judged = judging.take(made)
        assert isinstance(judged, Judged)
        assert judged.verdict.use is Use.FAULT
        assert words in judged.verdict.reason
        assert judged.rewards == ()
    asking = Judging(ASKS)
    request = asked(asking, finished(5))
    fault = Fault(FaultKind.TIMEOUT, "after 10 s")
    judged = asking.result(RewardResult(number=request.number, rewards=None, fault=fault))
    assert judged is not None
    assert judged.verdict.reason == "prompt 5: timeout: after 10 s"
