from itertools import combinations, pairwise

import pytest

from parallel.pipeline.split import split_layers


def all_cuts(layers, stages):
    for ends in combinations(range(1, layers), stages - 1):
        bounds = [0, *ends, layers]
        yield tuple(range(a, b) for a, b in pairwise(bounds))


def stage_costs(cut, costs, first, last):
    sums = [sum(costs[i] for i in stage) for stage in cut]
    sums[0] += first
    sums[-1] += last
    return sums


CASES = [
    ([1.0] * 8, 4, 0.0, 0.0),
    ([1.0] * 7, 3, 0.0, 2.5),
    ([3.0, 1.0, 1.0, 1.0, 5.0, 2.0, 2.0], 4, 1.0, 4.0),
    ([0.1] * 9, 5, 0.3, 0.7),
    ([2.0, 7.0], 2, 0.0, 100.0),
    ([4.0, 4.0, 4.0], 1, 1.0, 1.0),
]


@pytest.mark.parametrize(("costs", "stages", "first", "last"), CASES)
def test_every_layer_is_on_one_stage_in_order_and_no_stage_is_empty(costs, stages, first, last):
    cut = split_layers(costs, stages, first_cost=first, last_cost=last)
    assert [layer for stage in cut for layer in stage] == list(range(len(costs)))
    assert len(cut) == stages
    assert all(cut)


@pytest.mark.parametrize(("costs", "stages", "first", "last"), CASES)
def test_no_other_cut_is_better(costs, stages, first, last):
    def badness(cut):
        sums = stage_costs(cut, costs, first, last)
        return round(max(sums), 6), round(sum(s * s for s in sums), 6)

    cut = split_layers(costs, stages, first_cost=first, last_cost=last)
    assert badness(cut) == min(map(badness, all_cuts(len(costs), stages)))


def test_equal_layers_are_spread_evenly():
    assert [len(stage) for stage in split_layers([1.0] * 10, 4)] == [2, 2, 3, 3]
    assert split_layers([1.0] * 32, 8)[3] == range(12, 16)


def test_a_costly_head_takes_layers_from_the_last_stage():
    assert [len(s) for s in split_layers([1.0] * 8, 2, last_cost=2.0)] == [5, 3]


def test_fewer_layers_than_stages_are_refused_with_the_most_that_would_do():
    with pytest.raises(ValueError, match=r"3 layers cannot fill 4 .* at most 3 stages"):
        split_layers([1.0] * 3, 4)
