"""The three estimators by hand, and that k3's expectation is the divergence."""

from math import exp, log

import pytest
import torch

from trainer.rl.objectives.divergence import kl_estimate

EVERY = torch.tensor([True, True, False])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", [0.5, -1.0]), ("k2", [0.125, 0.5]), ("k3", [exp(-0.5) - 0.5, exp(1.0) - 2.0])],
)
def test_values_by_hand(estimator, expected):
    logp_T = torch.tensor([-1.0, -2.0, float("nan")])
    reference_T = torch.tensor([-1.5, -1.0, 0.0])
    found_T = kl_estimate(logp_T, reference_T, EVERY, estimator)
    assert found_T.tolist() == pytest.approx([*expected, 0.0])


def distributions():
    logits_V = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reference_V = torch.tensor([0.0, 0.2, -0.1], dtype=torch.float64).log_softmax(0)
    return logits_V, reference_V


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_in_value(estimator):
    logits_V, reference_V = distributions()
    logp_V = logits_V.log_softmax(0).detach()
    everything = torch.ones(3, dtype=torch.bool)
    mean = (logp_V.exp() * kl_estimate(logp_V, reference_V, everything, estimator)).sum()
    assert float(mean) == pytest.approx(float((logp_V.exp() * (logp_V - reference_V)).sum()))


def test_the_mean_gradient_of_k2_is_that_of_the_divergence_and_of_k1_is_zero():
    everything = torch.ones(3, dtype=torch.bool)
    grads = {}
    for estimator in ("k1", "k2"):
        logits_V, reference_V = distributions()
        logp_V = logits_V.log_softmax(0)
        weight_V = logp_V.exp().detach()
        (weight_V * kl_estimate(logp_V, reference_V, everything, estimator)).sum().backward()
        grads[estimator] = logits_V.grad.tolist()
    logits_V, reference_V = distributions()
    logp_V = logits_V.log_softmax(0)
    (logp_V.exp() * (logp_V - reference_V)).sum().backward()
    assert grads["k1"] == pytest.approx([0.0] * 3, abs=1e-12)
    assert grads["k2"] == pytest.approx(logits_V.grad.tolist())


def test_the_reference_gets_no_gradient():
    reference_T = torch.tensor([log(0.5)], requires_grad=True)
    logp_T = torch.tensor([log(0.25)], requires_grad=True)
    kl_estimate(logp_T, reference_T, torch.tensor([True]), "k3").backward()
    # d k3 / d log pi = 1 - reference / pi.
    assert float(logp_T.grad) == pytest.approx(1.0 - 2.0)
    assert reference_T.grad is None
