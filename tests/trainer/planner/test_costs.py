"""The guarantees of trainer/planner/costs.py."""

import math
from dataclasses import asdict, replace

import pytest

from parallel.layout import Layout
from tests.trainer.planner.planners import SHAPE
from trainer.planner.costs import Hardware, ModelCost, predict, refit, sent_bytes
from trainer.planner.plan import Terms

HARDWARE = Hardware(
    peak_flops_per_s=1e12, flops_per_s=5e11, update_parameters_per_s=1e8, link_bytes_per_s=1e9
)
COST = ModelCost(
    attention=SHAPE,
    parameters=1200,
    flops_per_token=7200,
    sharded=True,
    param_bytes=4,
    reshard_after_forward=True,
)


def _predict(hardware: Hardware = HARDWARE) -> Terms:
    return predict(
        rank_tokens=512,
        rounds=2,
        recompute=True,
        layout=Layout(replica=2, shard=2),
        model=COST,
        hardware=hardware,
    )


def test_terms_are_finite_and_not_negative():
    assert all(math.isfinite(v) and v >= 0 for v in asdict(_predict()).values())


def test_a_measurement_that_agrees_changes_nothing():
    predicted = _predict()
    after = asdict(refit(HARDWARE, predicted=predicted, measured=predicted))
    assert after == pytest.approx(asdict(HARDWARE))


def test_a_missing_measurement_changes_no_rate():
    after = refit(HARDWARE, predicted=_predict(), measured=Terms())
    assert after.flops_per_s == HARDWARE.flops_per_s
    assert after.exposed_fraction == HARDWARE.exposed_fraction


def test_bytes_follow_the_layout():
    payload = 4 * 1200
    buckets = replace(COST, sharded=False)
    assert sent_bytes(rounds=3, layout=Layout(replica=4), model=buckets) == payload * 3 // 2
    # Two gathers and a scatter per round, each half of the payload, then half-size all-reduces.
    sharded = sent_bytes(rounds=3, layout=Layout(replica=2, shard=2), model=COST)
    assert sharded == 3 * 3 * payload // 2 + payload // 2
    apart = Layout(shard=4, shard_weights=1, shard_gradients=2)
    # Half of all gradients every round, then a quarter out, and a quarter and a half back.
    assert sent_bytes(rounds=3, layout=apart, model=COST) == 3 * payload // 2 + payload
    kept = replace(COST, reshard_after_forward=False)
    assert sent_bytes(rounds=1, layout=Layout(shard=2), model=kept) == 2 * payload // 2
