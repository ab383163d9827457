"""The guarantees of trainer/rl/conducting/batches.py."""

from dataclasses import replace
from random import Random

import pytest

from tests.trainer.rl.conducting.groups import group
from trainer.rl.conducting.batches import Batches, pairs_of
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.objectives.config import ObjectiveConfig


def batches(overlong_tokens=0, **objective):
    rl = RlConfig(overlong_tokens=overlong_tokens, objective=ObjectiveConfig(**objective))
    return Batches(rl, RolloutConfig(max_new_tokens=8), seed=5)


def test_samples_come_group_by_group_with_advantages_of_their_group_alone():
    made = batches(kind="dr_grpo").of([group(7, (0.0, 1.0)), group(3, (5.0, 5.5))])
    assert [(s.group, s.reward) for s in made.samples] == [(7, 0), (7, 1), (3, 5), (3, 5.5)]
    assert [s.advantage for s in made.samples] == [-0.5, 0.5, -0.25, 0.25]
    assert made.samples[0].log_probs[1] == -0.5
    assert made.samples[0].model_log_probs[1] == -0.25
    assert made.pairs == ()


def test_a_penalty_for_length_changes_rewards_and_makes_no_group_useful():
    long = {"tokens": [2, 8]}
    made = batches(overlong_tokens=4, kind="dr_grpo").of([group(0, (0.0, 1.0), **long)])
    assert [s.advantage for s in made.samples] == [0.0, 0.0], "1 for the answer, -1 for its length"
    equal = batches(overlong_tokens=4, kind="dr_grpo").of([group(0, (1.0, 1.0), **long)])
    assert [s.advantage for s in equal.samples] == [0.0, 0.0]
    assert [s.reward for s in made.samples] == [0.0, 1.0]


def test_disagreement_lowers_advantages_where_the_objective_says_so():
    agree = group(0, (0.0, 1.0), finals=["4", "4"])
    differ = group(0, (0.0, 1.0), finals=["4", "5"])
    made = batches(kind="seed_grpo").of([agree, differ])
    assert [s.advantage for s in made.samples] == [-0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["dpo", "rso"])
def test_of_a_pair_the_chosen_answer_is_better_and_only_pairs_are_in_the_batch(kind):
    groups = [group(i, (0.1, 0.9, 0.4, 0.2, 0.7, 0.3, 0.8, 0.6)) for i in range(6)]
    made = batches(kind=kind, beta=1.0).of([*groups, group(9, (1.0, 1.0))])
    assert len(made.samples) == 2 * len(made.pairs) > 6
    assert sorted(place for pair in made.pairs for place in pair) == list(range(len(made.samples)))
    for chosen, rejected in made.pairs:
        assert made.samples[chosen].reward > made.samples[rejected].reward
        assert made.samples[chosen].group == made.samples[rejected].group != 9
    assert batches(kind=kind, beta=1.0).of(groups).pairs == made.pairs[: len(made.pairs)]


def test_dpo_pairs_the_best_with_the_worst():
    objective = ObjectiveConfig(kind="dpo")
    assert pairs_of((0.2, 0.9, 0.9, 0.1, 0.1), objective, Random(0)) == [(1, 3)]


def test_rso_keeps_the_best_half_where_the_scale_is_small():
    objective = replace(ObjectiveConfig(kind="rso"), beta=1e-3)
    (pair,) = pairs_of((0.1, 0.4, 0.3, 0.2), objective, Random(0))
    assert pair == (1, 2)
