"""The guarantees of trainer/rl/conducting/conductor.py."""

import json
from math import nan

import pytest

from tests.trainer.rl.conducting.desk import Desk, kept_of
from tests.trainer.rl.conducting.parties import Lease, is_useful
from tests.trainer.rl.conducting.simulation import World
from trainer.errors import DataError
from trainer.rl.messages import (
    Answered,
    GiveUp,
    Join,
    PublishFailed,
    Pulse,
    TrainerReady,
    Under,
    Updated,
    UpdateFailed,
)
from trainer.rl.payload import PromptRecord
from trainer.rl.rewards.config import RewardConfig
from trainer.rl.rewards.outcome import Fault, FaultKind, RewardResult

SEEDS = range(6)
FUNCTION = RewardConfig(function="rewards:score")


def useful(count):
    return [number for number in range(4 * count) if is_useful(number)][:count]


def in_order(steps=6):
    return [tuple(useful(3 * steps)[3 * i : 3 * i + 3]) for i in range(steps)]


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_prompt_is_trained_once_whatever_is_lost_when(staleness, seed):
    reward = FUNCTION if seed % 2 else RewardConfig()
    world = World(seed, losses=0.01, max_staleness=staleness, reward=reward).run()
    numbers = [number for groups in world.trained for number in groups]
    assert len(numbers) == len(set(numbers)) == 18
    assert all(map(is_useful, numbers))
    assert world.publishes <= 2 * (world.changes + world.starts), "no storm of channels"
    if staleness == 0:
        assert world.trained == in_order()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_staleness_of_zero_trains_in_order_whatever_finishes_when(seed):
    assert World(seed, max_staleness=0).run().trained == in_order()


def test_where_no_prompts_are_left_the_steps_that_remain_are_empty():
    world = World(3, task_size=13, max_staleness=1).run()
    numbers = [number for groups in world.trained for number in groups]
    assert sorted(numbers) == [n for n in range(13) if is_useful(n)]
    assert world.trained[-2:] == [(), ()]
    assert {e["kind"] for e in world.events} >= {"learned_nothing"}


def test_nothing_is_asked_before_the_first_weights_and_then_as_much_as_the_bound_allows():
    desk = Desk()
    assert [type(m) for _, m in desk.told] == [GiveUp, Join]
    desk.update(0)
    assert sorted(desk.leases) == [0, 1, 2, 3], "two steps of two prompts, at a staleness of 1"


def test_a_step_waits_for_all_its_prompts_and_tells_its_figures():
    desk = Desk()
    desk.update(0)
    desk.answer(2)
    assert not desk.steps
    desk.worker(Pulse(version=0, running=3, drawn_tokens=9, busy_s=3.0, idle_s=1.5))
    desk.now_s = 10.0
    desk.answer(0, (0.0, 1.0))
    (step,) = desk.steps
    assert [sample.group for sample in step.samples] == [0, 0, 2, 2]
    assert [sample.reward for sample in step.samples] == [0.0, 1.0, 0.0, 1.0]
    assert step.samples[1].advantage == pytest.approx(0.7071, abs=1e-3)
    figures = step.figures
    assert (figures["reward/mean"], figures["accuracy"]) == (0.5, 0.5)
    assert (figures["staleness/max"], figures["timing_s/rollout_wait"]) == (0.0, 1.5)
    assert figures["publish/pause_s"] == 0.5


def test_groups_with_equal_rewards_are_replaced_by_others():
    desk = Desk()
    desk.update(0)
    desk.answer(0, (1.0, 1.0))
    assert 4 in desk.leases
    desk.answer(1)
    desk.answer(2)
    (step,) = desk.steps
    assert {sample.group for sample in step.samples} == {1, 2}
    assert (step.figures["groups/dropped_equal"], step.figures["accuracy"]) == (1.0, 4 / 6)


def test_with_equal_rewards_for_long_a_step_has_fewer_and_says_so():
    desk = Desk(max_staleness=0)
    desk.update(0)
    for number in range(8):
        desk.answer(number, (0.0, 0.0))
    desk.answer(8)
    (step,) = desk.steps
    assert [sample.group for sample in step.samples] == [8, 8]
    assert desk.kinds() == []
    desk.commit(0)
    desk.update(1)
    for number in range(9, 18):
        desk.answer(number, (0.0, 0.0), version=1)
    assert desk.steps[1].samples == ()
    assert desk.kinds() == ["learned_nothing"]
    assert "9 groups" in desk.events[0]["cause"]


def test_equal_rewards_teach_nothing_where_groups_are_not_replaced():
    desk = Desk(dynamic_sampling=False)
    desk.update(0)
    desk.answer(0, (1.0, 1.0))
    desk.answer(1, (0.0, 0.0))
    (step,) = desk.steps
    assert [sample.advantage for sample in step.samples] == [0.0] * 4
    assert desk.kinds() == ["learned_nothing"]


def test_a_group_without_rewards_is_never_trained_and_none_with_any_ends_the_run():
    desk = Desk(max_staleness=0, reward=FUNCTION)
    desk.update(0)
    desk.answer(0)
    desk.answer(1)
    assert [request.prompt for request in desk.requests] == ["prompt 0", "prompt 1"]
    fault = Fault(FaultKind.RAISED, "ValueError: no")
    failed = RewardResult(number=desk.requests[0].number, rewards=None, fault=fault)
    good = RewardResult(number=desk.requests[1].number, rewards=(0.0, nan))
    desk.note(desk.conductor.on_rewards([failed, good, good], 0.0))
    assert desk.kinds() == ["group_fault", "group_fault"]
    assert "raised: ValueError: no" in desk.events[0]["cause"]
    assert not desk.steps
    for number in range(2, 9):
        desk.answer(number)
        failed = RewardResult(number=desk.requests[-1].number, rewards=None, fault=fault)
        if number < 8:
            desk.note(desk.conductor.on_rewards([failed], 0.0))
    with pytest.raises(DataError, match="none of the 9 groups for step 1 has rewards"):
        desk.conductor.on_rewards([failed], 0.0)


def test_what_is_said_under_a_lease_that_ended_changes_nothing():
    desk = Desk(workers=2)
    desk.update(0)
    _, lease_id, _ = desk.leases[0]
    desk.trainer(TrainerReady(version=0, trainers=1))
    assert ("w0", GiveUp()) in desk.told
    before = json.dumps(desk.conductor.snapshot())
    late = desk.worker(Under(lease_id=lease_id, kept=kept_of(0, (1.0, 0.0), 0)))
    assert late.to_rollouts == {"w0": (GiveUp(lease_ids=(lease_id,)),)}
    desk.worker(Answered(lease_id=lease_id, kept=kept_of(0, (1.0, 0.0), 0)))
    desk.worker(Updated(version=0, paused_s=0.0, received_bytes=1, prefix="weights/0"))
    assert json.dumps(desk.conductor.snapshot()) == before
    assert desk.conductor.status()["workers"] == {"w0": None, "w1": None}


def test_tokens_of_weights_that_a_worker_cannot_have_had_end_its_membership():
    desk = Desk()
    desk.update(0)
    _, lease_id, _ = desk.leases[0]
    desk.worker(Answered(lease_id=lease_id, kept=kept_of(0, (1.0, 0.0), 9)))
    assert desk.replaced == ["w0"]
    assert "versions 9 to 9" in desk.events[0]["cause"]
    assert desk.conductor.status()["workers"] == {}


def test_a_lost_workers_prompts_go_on_elsewhere_with_what_it_told():
    desk = Desk(workers=2)
    desk.update(0, "w0")
    _, lease_id, _ = desk.leases[1]
    told = Lease(1, 3, [7], [0]).kept(done=False)
    desk.worker(Under(lease_id=lease_id, kept=told))
    desk.update(0, "w1")
    desk.note(desk.conductor.rollout_lost("w0", "killed", 0.0))
    assert desk.leases[1][::2] == ("w1", told)
    assert desk.leases[0][::2] == ("w1", None)
    (event,) = desk.events
    assert (event["kind"], event["worker"], event["prompts"]) == ("rollout_lost", "w0", 4)


def test_who_makes_a_channel_fail_is_replaced_and_one_opening_at_a_time_is_asked_for():
    desk = Desk(workers=2)
    assert desk.places[0].names == ("trainer 0", "w0", "w1")
    desk.note(desk.conductor.rollout_up("w2", 0.0))
    desk.tick(5.0)
    assert len(desk.places) == 1, "the first opening is still under way"
    prefix = desk.places[0].prefix
    failed = PublishFailed(version=0, reason="w1 said nothing", culprits=("w1",), prefix=prefix)
    desk.trainer(failed)
    assert desk.replaced == ["w1"]
    assert desk.places[1].names == ("trainer 0", "w0", "w2")
    desk.trainer(failed)
    assert len(desk.places) == 2, "an earlier channel's failure is old news"
    assert desk.places[1].prefix != prefix


def test_a_worker_that_left_its_channel_alone_gets_another_one():
    desk = Desk()
    desk.update(0)
    failed = UpdateFailed(reason="the store is out of reach", prefix=desk.places[0].prefix)
    desk.worker(failed)
    assert len(desk.places) == 1
    desk.tick(6.0)
    assert len(desk.places) == 2


def test_a_silent_worker_is_replaced_and_one_that_pulses_keeps_its_leases():
    desk = Desk(workers=2, lease_s=60.0, prompts_per_step=4)
    desk.update(0, "w0")
    desk.update(0, "w1")
    desk.tick(50.0)
    desk.worker(Pulse(version=0, running=1, drawn_tokens=0, busy_s=1.0, idle_s=0.0), "w1")
    before = dict(desk.leases)
    desk.tick(20.0)
    assert desk.replaced == ["w0"]
    mine = {number: lease for number, lease in before.items() if lease[0] == "w1"}
    assert mine
    assert all(desk.leases[number] == lease for number, lease in mine.items())


def test_answers_are_kept_over_a_snapshot_and_training_that_goes_back():
    desk = Desk()
    desk.update(0)
    for number in range(4):
        desk.answer(number)
    desk.commit(0, saved=1)
    state = json.loads(json.dumps(desk.conductor.snapshot()))
    again = Desk(state=state, version=1)
    assert [sample.group for sample in again.steps[0].samples] == [2, 2, 3, 3]
    assert again.steps[0].version == 1
    assert not again.events
    assert again.places[0].prefix != desk.places[0].prefix


def test_a_state_that_does_not_reach_the_trainers_repeats_no_prompt():
    desk = Desk()
    desk.update(0)
    for number in range(4):
        desk.answer(number)
    state = json.loads(json.dumps(desk.conductor.snapshot()))
    again = Desk(state=state, version=3)
    assert again.kinds() == ["ledger_restarted"]
    again.update(3)
    assert min(again.leases) == 6, "three steps had two prompts each"
    assert not set(range(4)) & set(again.leases)


def test_after_the_last_step_nothing_is_started():
    desk = Desk(max_staleness=0)
    for version in range(4):
        desk.update(version)
        for number in (2 * version, 2 * version + 1):
            desk.answer(number, version=version)
        desk.commit(version)
    assert desk.conductor.done
    desk.update(4)
    desk.tick(100.0)
    assert desk.leases == {}
    assert [step.version for step in desk.steps] == [0, 1, 2, 3]


def test_prompts_of_the_ledger_are_read_by_the_same_words_that_wrote_them():
    desk = Desk()
    desk.update(0)
    desk.answer(0)
    plain = desk.conductor.snapshot()["ledger"]["records"][0]["kept"]["payload"]
    assert PromptRecord.from_plain(plain).prompt == "prompt 0"
