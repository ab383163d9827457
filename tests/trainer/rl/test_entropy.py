"""Semantic entropy against values worked out by hand."""

from math import exp, log

import pytest

from trainer.rl.entropy import answer_clusters, entropy_scale, semantic_entropy


def test_equal_answers_share_a_cluster_and_missing_ones_share_none():
    assert answer_clusters(["7", "8", "7", None, None, "8"]) == (0, 1, 0, 2, 3, 1)


def test_entropy_is_zero_if_all_agree_and_largest_if_none_do():
    assert semantic_entropy([0, 0, 0, 0]) == 0.0
    assert semantic_entropy([0, 1, 2, 3]) == pytest.approx(log(4))


def test_entropy_of_two_clusters():
    # Shares 3/4 and 1/4: -(log 3/4 + log 1/4) / 2.
    assert semantic_entropy([0, 0, 0, 1]) == pytest.approx(-(log(0.75) + log(0.25)) / 2)


def test_probabilities_may_weigh_the_answers():
    # Probabilities 0.3 and 0.1: shares 3/4 and 1/4 again.
    entropy = semantic_entropy([0, 1], log_probs=[log(0.3), log(0.1)])
    assert entropy == pytest.approx(-(log(0.75) + log(0.25)) / 2)


def test_tiny_probabilities_do_not_vanish():
    entropy = semantic_entropy([0, 1], log_probs=[-2000.0, -2000.0])
    assert entropy == pytest.approx(log(2))


def test_shapes_of_the_scale():
    share = semantic_entropy([0, 0, 0, 1]) / log(4)
    found = [
        entropy_scale([0, 0, 0, 1], scale=0.5, shape=shape)
        for shape in ("linear", "exponential", "focal")
    ]
    assert found == pytest.approx([1 - 0.5 * share, exp(-0.5 * share), (1 - share) ** 0.5])


@pytest.mark.parametrize("shape", ["linear", "exponential", "focal"])
def test_the_scale_is_one_if_sure_and_never_rises(shape):
    groups = [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 2, 3]]
    groups.sort(key=semantic_entropy)
    scales = [entropy_scale(group, scale=1.0, shape=shape) for group in groups]
    assert scales[0] == 1.0
    assert scales == sorted(scales, reverse=True)
    assert scales[-1] >= 0.0


def test_one_sample_cannot_disagree():
    assert entropy_scale([0], scale=1.0) == 1.0
    with pytest.raises(ValueError, match="at least one"):
        semantic_entropy([])
