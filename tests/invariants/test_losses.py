"""Invariant 1: any layout and any number of rounds give the losses of one rank in one round."""

import pytest

from recipes.invariance import RELATIVE_BOUND, Variant, compare, variants_of
from tests.jobs import tiny_job
from trainer.config import TrainConfig
from trainer.errors import RecipeError

VARIANTS = [
    Variant(replica=1, shard=1, rounds=1),
    Variant(replica=1, shard=1, rounds=4),
    Variant(replica=2, shard=1, rounds=2),
    Variant(replica=1, shard=2, rounds=4),
    Variant(replica=4, shard=1, rounds=1),
    Variant(replica=2, shard=2, rounds=2),
    Variant(replica=1, shard=4, rounds=2),
]


@pytest.mark.timeout(240)
def test_neither_ranks_nor_rounds_change_the_losses(tmp_path):
    comparisons = compare(tiny_job(tmp_path), VARIANTS, steps=4)
    assert [c.variant for c in comparisons] == VARIANTS
    for comparison in comparisons:
        assert comparison.largest_difference <= RELATIVE_BOUND, comparison
        assert comparison.grad_norms == pytest.approx(comparisons[0].grad_norms, rel=1e-4)
        assert comparison.losses[0] != comparison.losses[-1]


def test_variants_are_those_that_divide_the_batch(tmp_path):
    found = variants_of(tiny_job(tmp_path), worlds=(1, 2, 3), rounds=(1, 2, 4))
    assert found[0] == Variant(replica=1, shard=1, rounds=1)
    assert Variant(replica=1, shard=2, rounds=4) in found
    assert all(v.ranks != 3 for v in found)
    lone = tiny_job(tmp_path, train=TrainConfig(steps=6, global_batch_tokens=48))
    with pytest.raises(RecipeError, match="is 1 sequences"):
        variants_of(lone, worlds=(2,), rounds=(1,))
