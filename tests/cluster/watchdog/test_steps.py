"""The guarantees of cluster/watchdog/steps.py."""

from cluster.watchdog.steps import Steps
from tests.cluster.watchdog.given import reading


def two(first, second, generation=0):
    return {
        0: reading(0, steps=first, generation=generation),
        1: reading(1, steps=second, generation=generation),
    }


def numbers(taken):
    return [step for step, _ in taken]


def test_steps_pass_once_in_order_when_all_ranks_have_ended_them():
    steps = Steps(warm_up_steps=0)
    assert numbers(steps.take(two([1], [1]))) == []
    assert numbers(steps.take(two([1, 2, 3, 4], [1, 2, 3]))) == [2, 3]
    assert numbers(steps.take(two([1, 2, 3, 4], [1, 2, 3]))) == []
    assert numbers(steps.take(two([2, 3, 4, 5], [2, 3, 4]))) == [4]


def test_the_first_steps_of_each_generation_are_left_out():
    steps = Steps(warm_up_steps=2)
    steps.take(two([], []))
    assert numbers(steps.take(two(range(1, 6), range(1, 6)))) == [3, 4, 5]
    steps.take(two(range(1, 6), range(1, 6), generation=1))
    assert numbers(steps.take(two(range(5, 10), range(5, 10), generation=1))) == [8, 9]


def test_a_step_that_a_rank_no_longer_remembers_is_left_out():
    steps = Steps(warm_up_steps=0)
    steps.take(two([1], [1]))
    # The first entry has no end of the step before it.
    assert numbers(steps.take(two([1, 2, 3, 4], [2, 3, 4]))) == [3, 4]


def test_what_a_step_came_to():
    steps = Steps(warm_up_steps=0)
    steps.take(two([1], [1]))
    ((_, ranks),) = steps.take(two([1, 2], [1, 2]))
    own = ranks[0]
    assert (own.duration_s, own.compute_s, own.waited_s, own.busy_s) == (1.0, 0.5, 0.25, 0.75)
    assert own.data_s is None
    assert own.work is None
