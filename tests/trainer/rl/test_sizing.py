"""The guarantees of trainer/rl/sizing.py, against trying every split."""

import random
from itertools import product

import pytest

from trainer.rl.sizing import RoleTime, size_roles


def test_no_allowed_split_has_a_shorter_step():
    chance = random.Random(0)
    for _ in range(60):
        ranks = chance.randint(6, 16)
        roles = {
            name: RoleTime(
                ranks=chance.randint(1, 8),
                busy_s=chance.uniform(0.1, 10),
                sizes=sorted({1, *chance.sample(range(1, 17), 5)}),
            )
            for name in ("trainer", "rollout", "reward")
        }
        found = size_roles(roles, ranks=ranks, least_gain=-1e9)
        every = [
            max(role.work / size for role, size in zip(roles.values(), split, strict=True))
            for split in product(*(role.sizes for role in roles.values()))
            if sum(split) <= ranks
        ]
        assert found.step_s == pytest.approx(min(every))
        assert sum(found.ranks.values()) <= ranks
        slowest = max(role.work / found.ranks[name] for name, role in roles.items())
        assert slowest <= found.step_s * (1 + 1e-9)


def test_shares_follow_the_work_where_every_size_is_allowed():
    every = range(1, 257)
    roles = {
        "trainer": RoleTime(ranks=128, busy_s=30.0, sizes=every),
        "rollout": RoleTime(ranks=128, busy_s=90.0, sizes=every),
    }
    found = size_roles(roles, ranks=256)
    assert found.ranks == {"trainer": 64, "rollout": 192}
    assert found.step_s == pytest.approx((30 + 90) * 128 / 256)
    assert found.advised
    assert found.sentence == (
        "in a step trainer 30 s and rollout 90 s are busy with trainer 128, rollout 128 ranks; "
        "with trainer 64, rollout 192 a step should take 60 s instead of 90 s"
    )


def test_a_small_gain_is_not_advised():
    roles = {
        "trainer": RoleTime(ranks=4, busy_s=1.0, sizes=range(1, 9)),
        "rollout": RoleTime(ranks=4, busy_s=1.01, sizes=range(1, 9)),
    }
    found = size_roles(roles, ranks=8)
    assert not found.advised
    assert found.ranks == {"trainer": 4, "rollout": 4}
    assert found.step_s == found.present_s == 1.01
    assert "well split (trainer 4, rollout 4)" in found.sentence


def test_ranks_that_are_left_go_to_a_role_that_can_use_them():
    roles = {
        "trainer": RoleTime(ranks=2, busy_s=3.0, sizes=(2, 4)),
        "rollout": RoleTime(ranks=2, busy_s=8.0, sizes=range(1, 9)),
    }
    found = size_roles(roles, ranks=9)
    assert (found.ranks, found.step_s) == ({"trainer": 2, "rollout": 7}, 3.0)


@pytest.mark.parametrize(
    ("role", "ranks", "message"),
    [
        (RoleTime(ranks=1, busy_s=0.0, sizes=(1,)), 2, "busy_s=0.0 on 1 ranks must be positive"),
        (RoleTime(ranks=1, busy_s=float("nan"), sizes=(1,)), 2, "busy_s=nan"),
        (RoleTime(ranks=1, busy_s=1.0, sizes=()), 2, "must name sizes"),
        (RoleTime(ranks=1, busy_s=1.0, sizes=(4,)), 2, "2 ranks do not hold the roles"),
    ],
)
def test_what_cannot_be_sized_is_refused(role, ranks, message):
    with pytest.raises(ValueError, match=message):
        size_roles({"trainer": role}, ranks=ranks)
