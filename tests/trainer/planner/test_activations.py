"""Plans say what happens to activations, and learn from what it took."""

from dataclasses import replace

import pytest

from offload.activations.amount import choose_alpha
from tests.trainer.planner.planners import LENGTHS, fixed_planner
from trainer.model.activation_size import BlockCost
from trainer.planner.activations import (
    ActivationPlanner,
    ActivationRoom,
    TierRoom,
    choose_kind,
    fullest_round_tokens,
    weigh,
)
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.plan import Terms

BLOCK = BlockCost(
    input_bytes=1e3, attention_bytes=1e3, other_bytes=14e3, flops=100.0, tokenwise_flops=60.0
)
ALL = ("keep", "selective", "recompute", "swap")
RATES = {"tokens": 8, "flops_per_s": 5e8}


def room_of(device_bytes=10**9, *, bytes_per_s=1e12, tier_bytes=10**9, **more):
    tier = TierRoom(tier="disk", num_bytes=tier_bytes, bytes_per_s=bytes_per_s)
    return ActivationRoom(block=BLOCK, blocks=8, device_bytes=device_bytes, tier=tier, **more)


def planner_of(kinds, room, share=None):
    return ActivationPlanner(fixed_planner(), kinds=kinds, room=room, share=share)


def test_the_cheapest_that_fits_is_chosen():
    sizes = {kind: weigh(kind, room_of(), share=None, **RATES).peak_bytes for kind in ALL}
    assert sizes["recompute"] < sizes["selective"] < sizes["keep"]
    assert choose_kind(ALL, room_of(), **RATES).policy.kind == "keep"
    fast = room_of(int(sizes["keep"]) - 1)
    assert choose_kind(ALL, fast, **RATES).policy.kind == "swap"
    slow = replace(fast, tier=TierRoom(tier="disk", num_bytes=10**9, bytes_per_s=1.0))
    assert choose_kind(ALL, slow, **RATES).policy.kind == "selective"
    tight = replace(slow, device_bytes=int(sizes["selective"]) - 1)
    assert choose_kind(ALL, tight, **RATES).policy.kind == "recompute"


def test_where_nothing_fits_the_smallest_is_taken():
    choice = choose_kind(("keep", "selective", "recompute"), room_of(0), **RATES)
    assert choice.policy.kind == "recompute"


def test_a_pipeline_keeps_more_and_has_less_room_on_the_tier():
    one, three = room_of(), room_of(waiting=3)
    for kind in ("keep", "selective", "recompute"):
        assert (
            weigh(kind, three, share=None, **RATES).peak_bytes
            > 1.5 * weigh(kind, one, share=None, **RATES).peak_bytes
        )
    narrow = room_of(tier_bytes=8 * 8 * 9000), room_of(tier_bytes=8 * 8 * 9000, waiting=3)
    alphas = [weigh("swap", room, share=None, **RATES).policy.alpha for room in narrow]
    assert alphas == [0.5, 1 / 16]


@pytest.mark.parametrize("bytes_per_s", [1e9, 5e9, 7e9, 1e12])
def test_alpha_is_the_closed_form_rounded_down(bytes_per_s):
    room = room_of(bytes_per_s=bytes_per_s)
    wanted = choose_alpha(
        BLOCK.bytes_of(8),
        forward_s=8 * 100.0 / 5e8,
        bytes_per_s=bytes_per_s,
        tier_bytes=10**9,
        blocks=8,
        kept_blocks=0,
    )
    found = weigh("swap", room, share=None, **RATES).policy.alpha
    assert wanted - 1 / 16 < found <= wanted
    assert weigh("swap", room, share=0.3, **RATES).policy.alpha == 0.3


def test_a_swap_without_a_tier_is_refused():
    with pytest.raises(ValueError, match=r"a swap needs a tier; name offload\.disk"):
        weigh("swap", replace(room_of(), tier=None), share=None, **RATES)


@pytest.mark.parametrize("kinds", [("keep",), ("selective",), ("swap",)], ids=str)
def test_everything_else_of_the_plan_is_the_planners(kinds):
    plan, alone = (
        planner_of(kinds, room_of()).choose(3, LENGTHS),
        fixed_planner().choose(3, LENGTHS),
    )
    assert plan.activation.startswith(kinds[0])
    assert "activations" in plan.reasons[-1]
    assert plan.predicted.compute_s >= alone.predicted.compute_s
    same = {"activation": "keep", "predicted": alone.predicted, "reasons": alone.reasons}
    assert replace(plan, **same) == alone
    assert decode_plan(encode_plan(plan)) == plan


def test_the_planners_rates_do_not_depend_on_the_choice():
    """A machine that is twice as slow as thought is so with and without recomputation."""
    rates = []
    for kinds in (("keep",), ("selective",), ("recompute",)):
        planner = planner_of(kinds, room_of())
        for step in (1, 2, 3):
            plan = planner.choose(step, LENGTHS)
            planner.observe(plan, Terms(compute_s=2 * plan.predicted.compute_s))
        rates.append(planner.hardware.flops_per_s)
    assert rates[1:] == pytest.approx([rates[0]] * 2)
    assert rates[0] < 5e8


def test_waiting_lowers_the_tiers_rate_and_only_waiting():
    planner = planner_of(("swap",), room_of(bytes_per_s=1e9))
    planner.observe(planner.choose(1, LENGTHS), Terms(compute_s=1.0, copies_s=1.0))
    slower = planner.room.tier.bytes_per_s
    assert slower < 1e9
    planner.observe(planner.choose(2, LENGTHS), Terms(compute_s=1.0))
    assert planner.room.tier.bytes_per_s == slower
    planner.observe(planner.choose(3, LENGTHS), Terms(compute_s=1e-6))
    assert planner.room.tier.bytes_per_s > 1e9


def test_the_fullest_round_counts_shared_sequences_by_rank():
    plan = fixed_planner().choose(1, LENGTHS)
    assert fullest_round_tokens(plan, LENGTHS) == 8
    group = replace(plan.rounds[0].groups[0], size=2, sequences=(0, 1, 2))
    shared = replace(plan, rounds=(replace(plan.rounds[0], groups=(group,)),))
    assert fullest_round_tokens(shared, LENGTHS) == 12
    assert fullest_round_tokens(replace(plan, rounds=()), LENGTHS) == 0
