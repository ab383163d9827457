"""Preference losses by hand, and their gradients by finite differences."""

from math import exp, log

import pytest
import torch

from trainer.rl.objectives.preference import preference_loss, preference_margins, sequence_logp

PAIRS_P2 = torch.tensor([[0, 1], [2, 1]])


def test_the_log_probability_of_a_response_is_the_sum_over_its_trained_tokens():
    logp_T = torch.tensor([-9.0, -1.0, -2.0, float("nan"), -4.0])
    mask_T = torch.tensor([False, True, True, False, True])
    logp_S = sequence_logp(logp_T, mask_T, torch.tensor([0, 0, 0, 1, 1]), 2)
    assert logp_S.tolist() == [-3.0, -4.0]


def test_margins_compare_with_the_reference():
    margin_P = preference_margins(
        torch.tensor([-1.0, -3.0, -2.0]), torch.tensor([-1.5, -2.0, -2.0]), PAIRS_P2
    )
    # Gains 0.5, -1 and 0.
    assert margin_P.tolist() == [1.5, 1.0]


def test_losses_by_hand():
    margin_P = torch.tensor([0.0, 2.0, -2.0])
    sigmoid_P = preference_loss(margin_P, beta=0.5)
    assert sigmoid_P.tolist() == pytest.approx([log(2), log(1 + exp(-1)), log(1 + exp(1))])
    assert preference_loss(margin_P, beta=0.25, kind="hinge").tolist() == [1.0, 0.5, 1.5]


@pytest.mark.parametrize("kind", ["sigmoid", "hinge"])
def test_gradients_are_those_of_finite_differences(kind):
    reference_S = torch.tensor([-1.5, -2.0, -2.0], dtype=torch.float64)

    def value(logp_S):
        margin_P = preference_margins(logp_S, reference_S, PAIRS_P2)
        return preference_loss(margin_P, beta=0.3, kind=kind).sum()

    logp_S = torch.tensor([-1.0, -3.0, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, logp_S)
    value(logp_S).backward()
    assert logp_S.grad[0] < 0 < logp_S.grad[1]
