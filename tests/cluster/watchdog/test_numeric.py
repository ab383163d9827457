"""The guarantees of cluster/watchdog/numeric.py."""

import math
import random
from dataclasses import replace

import pytest

from cluster.watchdog.evidence import LossPoint
from cluster.watchdog.numeric import NORMS_IN_ROW, Losses
from tests.cluster.watchdog.given import evidence, reading


def seen(*points):
    return replace(evidence(*(reading(rank) for rank in range(4))), losses=points)


def point(step, loss=2.0, grad_norm=1.0, bad_ranks=()):
    return LossPoint(step=step, loss=loss, grad_norm=grad_norm, bad_ranks=bad_ranks)


def settled():
    losses, chance = Losses(5.0), random.Random(0)
    for step in range(60):
        noisy = point(step, 2.0 + chance.gauss(0, 0.05), chance.lognormvariate(0, 0.3))
        assert losses.add(seen(noisy)) == []
    return losses


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_said_at_once_with_its_rank(bad):
    (finding,) = Losses(5.0).add(seen(point(1, loss=bad, bad_ranks=(3,))))
    assert (finding.kind, finding.cause, finding.rank, finding.host) == (
        "numeric",
        "not-finite",
        3,
        "b",
    )


def test_a_summed_gradient_that_is_not_finite_names_no_rank():
    (finding,) = Losses(5.0).add(seen(point(1, grad_norm=math.nan)))
    assert finding.rank is None
    assert "nan" in str(finding)


def test_a_loss_that_jumps_is_said_once():
    losses = settled()
    (finding,) = losses.add(seen(point(60, loss=30.0)))
    assert (finding.cause, finding.step) == ("loss-jump", 60)
    assert losses.add(seen(point(61))) == []


def test_gradients_have_to_stay_large():
    losses = settled()
    found = [losses.add(seen(point(60 + n, grad_norm=50.0))) for n in range(NORMS_IN_ROW + 2)]
    assert [len(findings) for findings in found] == [0] * (NORMS_IN_ROW - 1) + [1, 0, 0]
    assert "gradient norm" in str(found[NORMS_IN_ROW - 1][0])


def test_the_first_steps_and_a_falling_loss_raise_nothing():
    losses = Losses(5.0)
    falling = [point(step, loss=10.0 * math.exp(-step / 20)) for step in range(100)]
    assert losses.add(seen(point(0, loss=0.1), point(1, loss=50.0), *falling)) == []


def test_losses_about_zero_have_no_jumps():
    losses = Losses(5.0)
    usual = [point(step, loss=0.0, grad_norm=0.0) for step in range(60)]
    assert losses.add(seen(*usual, point(60, loss=0.5, grad_norm=0.5))) == []
    assert losses.add(seen(*[point(61 + n, loss=-0.1) for n in range(60)])) == []
    assert losses.add(seen(point(130, loss=0.1))) == []
