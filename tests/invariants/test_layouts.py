"""Invariant 1 for every pair of axes, and invariant 3 for runs that change their layout."""

from dataclasses import replace

import pytest

from parallel.config import ParallelConfig
from recipes.invariance import RELATIVE_BOUND, Variant
from tests.invariants.variants import compare_side_by_side
from tests.jobs import tiny_job, train_on_ranks
from tests.left import losses, metrics
from trainer.errors import RecipeError
from trainer.spread import require_layout

ALONE = [
    Variant(replica=4, sp=4),
    Variant(shard=4, sp="auto"),
    Variant(shard=2, ep=2, rebalance_interval_steps=1),
    Variant(shard=3, ep=3),
    Variant(tp=2),
    Variant(pp=3, rounds=2),
    Variant(pp=4, rounds=4),
    Variant(pp=2, schedule="interleaved", rounds=4),
    Variant(pp=2, schedule="zero_bubble", rounds=2),
    Variant(shard=4, shard_weights=2),
    Variant(shard=4, shard_weights=1, shard_gradients=2, rounds=2),
]
PAIRS = [
    Variant(replica=2, shard=2, ep=2, rounds=2),
    Variant(shard=4, ep=2, sp=2),
    Variant(shard=4, ep=4, sp="auto"),
    Variant(shard=2, tp=2, rounds=2),
    Variant(replica=2, tp=2, sp=2),
    Variant(pp=2, shard=2, rounds=2),
    Variant(pp=2, tp=2, rounds=2),
    Variant(pp=2, shard=2, ep=2, rounds=2),
    Variant(pp=2, replica=2, sp=2, rounds=2),
    Variant(pp=2, shard=2, schedule="zero_bubble", rounds=2),
    Variant(shard=4, shard_weights=2, sp=2),
]
TRIPLES = [
    Variant(shard=2, tp=2, sp=2, ep=2),
    Variant(pp=2, shard=2, sp=2, ep=2, rounds=2),
    Variant(replica=2, shard=2, shard_weights=1, sp=4),
]


def _job(folder, **changes):
    job = tiny_job(folder, **changes)
    moe = replace(job.model.moe, num_experts=12)
    return replace(job, model=replace(job.model, num_layers=4, moe=moe))


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory):
    """Of all variants with one rank, in two steps."""
    job = _job(tmp_path_factory.mktemp("variants"))
    return compare_side_by_side(job, [Variant(), *ALONE, *PAIRS, *TRIPLES], steps=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("variants", [ALONE, PAIRS, TRIPLES], ids=["alone", "pairs", "triples"])
def test_no_combination_of_axes_changes_the_losses(comparisons, variants):
    reference = comparisons[0].grad_norms
    found = {comparison.variant: comparison for comparison in comparisons}
    for variant in variants:
        comparison = found[variant]
        assert comparison.largest_difference <= RELATIVE_BOUND, comparison
        assert comparison.grad_norms[:2] == pytest.approx(reference[:2], rel=1e-4), comparison


@pytest.mark.timeout(240)
def test_no_combination_changes_the_losses_of_the_mixture_variants(tmp_path):
    job = _job(tmp_path)
    moe = replace(
        job.model.moe, pyramid=(4, 8, 12), residual=True, dispatch_size=16, capacity_factor=1.0
    )
    job = replace(job, model=replace(job.model, moe=moe))
    variants = [
        Variant(shard=4, ep=2, rounds=2),
        Variant(pp=2, shard=2, ep=2, rounds=2),
        Variant(shard=2, shard_weights=1),
    ]
    for comparison in compare_side_by_side(job, [Variant(), *variants], steps=2):
        assert comparison.largest_difference <= RELATIVE_BOUND, comparison


@pytest.mark.timeout(240)
def test_sequences_of_their_own_length_are_trained_alike_by_all_groups(tmp_path):
    job = _job(tmp_path)
    job = replace(
        job,
        data=replace(job.data, packing="single"),
        train=replace(job.train, global_batch_sequences=9),
    )
    variants = [Variant(), Variant(shard=2), Variant(shard=4, sp="auto"), Variant(shard=3)]
    for comparison in compare_side_by_side(job, variants, steps=2):
        assert comparison.largest_difference <= RELATIVE_BOUND, comparison


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_on_in_any_other_layout(tmp_path):
    moved = _job(tmp_path)
    whole = replace(moved, run=replace(moved.run, name="whole"))
    train_on_ranks(whole, 1)
    layouts = [
        (4, ParallelConfig(shard=2, tp=2, ep=2)),
        (4, ParallelConfig(pp=2, shard=2, schedule="interleaved")),
        (4, ParallelConfig(shard=4, shard_weights=2)),
        (4, ParallelConfig(shard=4, ep=4, sp=2)),
        (3, ParallelConfig(pp=3)),
    ]
    for ranks, parallel in layouts:
        train_on_ranks(replace(moved, parallel=parallel), ranks, stop_after=1)
    train_on_ranks(moved, 1)
    assert losses(moved) == pytest.approx(losses(whole), rel=RELATIVE_BOUND)


REFUSED = [
    (2, ParallelConfig(tp=3), r"tp=3 = 3 does not divide the 2 ranks"),
    (4, ParallelConfig(tp=4), r"tp=4 does not divide model.num_kv_heads=2"),
    (2, ParallelConfig(shard=2, ep=2), r"ep=2 does not divide model.moe.num_experts=5"),
    (2, ParallelConfig(pp=2, schedule="zero_bubble"), "needs 4 stages, but model.num_layers=2"),
    (2, ParallelConfig(shard=2, shard_weights=1, tp=1, ep=2), "do not work with parallel.ep=2"),
]


@pytest.mark.parametrize(("ranks", "parallel", "message"), REFUSED)
def test_what_cannot_be_combined_is_refused(tmp_path, ranks, parallel, message):
    job = tiny_job(tmp_path, parallel=parallel)
    if "do not work" in message:
        job = replace(job, model=replace(job.model, moe=replace(job.model.moe, num_experts=4)))
    with pytest.raises(RecipeError, match=message):
        require_layout(job, ranks)


def test_ranks_refuse_it_before_training(tmp_path):
    ranks, parallel, message = REFUSED[0]
    job = tiny_job(tmp_path, parallel=parallel)
    with pytest.raises(RecipeError, match=message):
        train_on_ranks(job, ranks)
    assert metrics(job) == []
