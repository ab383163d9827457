from collections import Counter

import pytest

from parallel.pipeline.schedule import (
    Action,
    Kind,
    PipelineShape,
    arrivals,
    forward_orders,
    most_held,
    plan_timeline,
    replay,
    source_of,
)

SHAPES = [
    PipelineShape(schedule=schedule, ranks=ranks, stages_per_rank=stages)
    for schedule, stages in (
        ("gpipe", 1),
        ("1f1b", 1),
        ("interleaved", 2),
        ("interleaved", 3),
        ("zero_bubble", 2),
    )
    for ranks in (1, 2, 3, 4, 8)
]
MICROBATCHES = (1, 2, 3, 5, 8, 9, 16, 21)
everywhere = pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: f"{s.schedule}-{s.ranks}x{s.stages_per_rank}"
)


def text(order):
    return " ".join(f"{a.kind.value}{a.microbatch}" for a in order)


@everywhere
def test_every_stage_runs_every_microbatch_once_in_each_direction_in_order(shape):
    kinds = (
        [Kind.FORWARD, Kind.INPUT, Kind.WEIGHT]
        if shape.splits_backward
        else [Kind.FORWARD, Kind.BACKWARD]
    )
    for microbatches in MICROBATCHES:
        orders = plan_timeline(shape, microbatches).orders
        for rank, order in enumerate(orders):
            assert {a.stage for a in order} == set(shape.stages_of(rank))
            for stage in shape.stages_of(rank):
                for kind in kinds:
                    numbers = [a.microbatch for a in order if (a.stage, a.kind) == (stage, kind)]
                    assert numbers == list(range(microbatches))
            assert len(order) == microbatches * shape.stages_per_rank * len(kinds)


@everywhere
def test_ranks_that_wait_for_inputs_never_block_each_other(shape):
    for microbatches in MICROBATCHES:
        assert replay(shape, plan_timeline(shape, microbatches).orders) > 0
        assert replay(shape, forward_orders(shape, microbatches)) > 0


def test_orders_that_wait_for_each_other_are_found_out():
    shape = PipelineShape(schedule="1f1b", ranks=2)
    first = (Action(Kind.BACKWARD, 0, 0), Action(Kind.FORWARD, 0, 0))
    second = (Action(Kind.FORWARD, 1, 0), Action(Kind.BACKWARD, 1, 0))
    with pytest.raises(ValueError, match="wait for each other"):
        replay(shape, (first, second))


@everywhere
def test_a_rank_holds_no_more_than_announced(shape):
    for microbatches in MICROBATCHES:
        for rank, order in enumerate(plan_timeline(shape, microbatches).orders):
            assert most_held(order) <= shape.kept(rank, microbatches)


@everywhere
def test_the_bubble_is_that_of_the_papers(shape):
    p = shape.ranks
    for microbatches in (2 * p, 2 * p + 1, 5 * p):
        timeline = plan_timeline(shape, microbatches)
        work = 3 * microbatches * shape.stages_per_rank
        if shape.splits_backward:
            assert timeline.span - work <= p
        else:
            # In units of one stage, which `interleaved` makes smaller by the stages per rank.
            assert timeline.span - work == 3 * (p - 1)
        assert timeline.idle_share == pytest.approx(1 - work / timeline.span)


def test_1f1b_is_the_order_of_pipedream_flush():
    orders = plan_timeline(PipelineShape(schedule="1f1b", ranks=4), 5).orders
    assert text(orders[0]) == "F0 F1 F2 F3 B0 F4 B1 B2 B3 B4"
    assert text(orders[2]) == "F0 F1 B0 F2 B1 F3 B2 F4 B3 B4"
    assert text(orders[3]) == "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4"


def test_zero_bubble_puts_first_and_last_stage_on_one_rank():
    shape = PipelineShape(schedule="zero_bubble", ranks=3, stages_per_rank=2)
    assert [shape.stages_of(rank) for rank in range(3)] == [(0, 5), (1, 4), (2, 3)]
    looped = PipelineShape(schedule="interleaved", ranks=3, stages_per_rank=2)
    assert [looped.stages_of(rank) for rank in range(3)] == [(0, 3), (1, 4), (2, 5)]


@everywhere
def test_arrivals_are_what_a_rank_needs_in_the_order_it_is_sent(shape):
    orders = plan_timeline(shape, 6).orders
    for rank, order in enumerate(orders):
        sent = arrivals(shape, orders, rank)
        needed = Counter(
            source
            for source in (source_of(shape, action) for action in order)
            if source is not None and shape.rank_of(source.stage) != rank
        )
        assert needed == Counter(action for actions in sent.values() for action in actions)
        for peer, actions in sent.items():
            places = [orders[peer].index(action) for action in actions]
            assert places == sorted(places)


@pytest.mark.parametrize(
    ("schedule", "stages", "remedy"),
    [("1f1b", 2, "set it to 1"), ("zero_bubble", 1, "set it to 2"), ("interleaved", 0, "positive")],
)
def test_stages_per_rank_that_do_not_fit_are_refused(schedule, stages, remedy):
    with pytest.raises(ValueError, match=remedy):
        PipelineShape(schedule=schedule, ranks=2, stages_per_rank=stages)


def test_a_step_without_microbatches_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        plan_timeline(PipelineShape(schedule="1f1b", ranks=2), 0)
