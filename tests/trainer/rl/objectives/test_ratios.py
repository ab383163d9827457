"""Objectives of rewards, against values worked out by hand and gradients of plain formulas."""

from dataclasses import replace
from math import exp, log

import pytest
import torch

from trainer.rl.objectives.normalise import normalised_sum
from trainer.rl.objectives.ratios import (
    aipo_loss,
    cispo_loss,
    clipped_loss,
    clipped_mask,
    decoupled_loss,
    gspo_loss,
    proximal_between,
)
from trainer.rl.objectives.stream import GlobalCounts, PolicyStream

RATIOS = [1.0, 1.5, 0.5, 1.5, 0.5, 4.0]
ADVANTAGES = [1.0, 1.0, 1.0, -1.0, -1.0, -1.0]
BOUNDS = {"clip_low": 0.2, "clip_high": 0.2}


def stream(old, advantages, **fields):
    given = {
        "mask_T": torch.ones(len(old), dtype=torch.bool),
        "sequence_T": torch.zeros(len(old), dtype=torch.int64),
        "tokens_S": torch.tensor([len(old)]),
        "advantage_T": torch.tensor(advantages, dtype=torch.float64),
        "behave_T": torch.tensor(old, dtype=torch.float64),
    }
    return PolicyStream(**(given | fields))


def logs(values):
    return torch.tensor([log(v) for v in values], dtype=torch.float64, requires_grad=True)


def example():
    """Probability 0.1 when sampled, and now such that the ratios are RATIOS."""
    return logs([0.1 * r for r in RATIOS]), stream([log(0.1)] * 6, ADVANTAGES)


def finite_differences(value_of, logp_T, step=1e-6):
    grads = []
    for i in range(len(logp_T)):
        shift_T = torch.zeros_like(logp_T)
        shift_T[i] = step
        above, below = value_of(logp_T + shift_T), value_of(logp_T - shift_T)
        grads.append(float(above - below) / (2 * step))
    return grads


def test_clipped_loss_by_hand():
    logp_T, given = example()
    # min(r A, clip(r) A): bounded above for A > 0, below for A < 0, the worse one always taken.
    expected = [-1.0, -1.2, -0.5, 1.5, 0.8, 4.0]
    assert clipped_loss(logp_T, given, **BOUNDS).tolist() == pytest.approx(expected)


def test_clip_higher_lets_unlikely_tokens_grow_further():
    logp_T, given = example()
    loss_T = clipped_loss(logp_T, given, clip_low=0.2, clip_high=0.28)
    assert float(loss_T[1].detach()) == pytest.approx(-1.28)


def test_dual_clip_bounds_the_loss_of_a_negative_advantage():
    logp_T, given = example()
    loss_T = clipped_loss(logp_T, given, dual_clip=3.0, **BOUNDS)
    assert loss_T.tolist() == pytest.approx([-1.0, -1.2, -0.5, 1.5, 0.8, 3.0])


def test_clipped_tokens_have_no_gradient_and_are_counted():
    logp_T, given = example()
    clipped_loss(logp_T, given, **BOUNDS).sum().backward()
    # d(-r A)/d log pi is -r A where it is not clipped.
    assert logp_T.grad.tolist() == pytest.approx([-1.0, 0.0, -0.5, 1.5, 0.0, 4.0])
    clipped = clipped_mask(logp_T, given, **BOUNDS)
    assert clipped.tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_clipped_gradient_is_that_of_finite_differences(dual_clip):
    logp_T, given = example()

    def value(logp_T):
        return clipped_loss(logp_T, given, dual_clip=dual_clip, **BOUNDS).sum()

    value(logp_T).backward()
    expected = finite_differences(value, logp_T.detach())
    assert logp_T.grad.tolist() == pytest.approx(expected, abs=1e-6)


def two_sequences():
    """Ratios (2, 0.5, 2) with advantage 1 and (0.9) with -2, sampled at probability 0.1."""
    ratios, advantages = [2.0, 0.5, 2.0, 0.9], [1.0, 1.0, 1.0, -2.0]
    given = stream(
        [log(0.1)] * 4,
        advantages,
        sequence_T=torch.tensor([0, 0, 0, 1]),
        tokens_S=torch.tensor([3, 1]),
    )
    return logs([0.1 * r for r in ratios]), given


def test_gspo_is_the_sequence_form_in_value_and_gradient():
    logp_T, given = two_sequences()
    counts = GlobalCounts(tokens=4, sequences=2)
    loss_T = gspo_loss(logp_T, given, clip_low=0.5, clip_high=0.5)
    loss = normalised_sum(loss_T, given, counts, "sequence")
    loss.backward()
    # Geometric means: 2^(1/3) and 0.9, neither clipped.
    assert float(loss.detach()) == pytest.approx(-(2 ** (1 / 3) - 2 * 0.9) / 2)

    def plain(logp_T):
        ratio_T = logp_T - log(0.1)
        first, second = (ratio_T[:3].sum() / 3).exp(), ratio_T[3].exp()
        return -(first * 1.0 + second * -2.0) / 2

    expected = finite_differences(plain, logp_T.detach())
    assert logp_T.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_gspo_clips_whole_sequences():
    logp_T, given = two_sequences()
    loss_T = gspo_loss(logp_T, given, clip_low=0.05, clip_high=0.1)
    loss_T.sum().backward()
    # 2^(1/3) is above 1.1 with a positive, 0.9 below 0.95 with a negative advantage.
    assert loss_T.tolist() == pytest.approx([-1.1, -1.1, -1.1, 1.9])
    assert logp_T.grad.tolist() == [0.0] * 4


def test_gspo_of_a_sequence_cut_over_ranks_equals_the_whole():
    logp_T, given = two_sequences()
    bounds = {"clip_low": 0.5, "clip_high": 0.5}
    whole_T = gspo_loss(logp_T, given, **bounds).detach()
    log_ratio_T = logp_T.detach() - log(0.1)
    total_S = torch.stack([log_ratio_T[:3].sum(), log_ratio_T[3]])
    for here in (slice(0, 2), slice(2, 4)):
        part = replace(
            given,
            **{
                name: value[here]
                for name, value in {
                    "mask_T": given.mask_T,
                    "sequence_T": given.sequence_T,
                    "advantage_T": given.advantage_T,
                    "behave_T": given.behave_T,
                }.items()
            },
        )
        loss_T = gspo_loss(logp_T[here], part, **bounds, complete=lambda partial_S: total_S)
        assert loss_T.tolist() == pytest.approx(whole_T[here].tolist())


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    logp_T, given = example()
    loss_T = cispo_loss(logp_T, given, clip_low=1.0, clip_high=1.0)
    loss_T.sum().backward()
    weights = [1.0, 1.5, 0.5, 1.5, 0.5, 2.0]
    signed = [-w * a for w, a in zip(weights, ADVANTAGES, strict=True)]
    assert logp_T.grad.tolist() == pytest.approx(signed)
    values = [s * log(0.1 * r) for s, r in zip(signed, RATIOS, strict=True)]
    assert loss_T.tolist() == pytest.approx(values)


def test_aipo_truncates_above_only_and_refers_to_the_sampler():
    logp_T, given = example()
    given = replace(given, proximal_T=torch.zeros(6))
    aipo_loss(logp_T, given, weight_cap=1.2).sum().backward()
    weights = [1.0, 1.2, 0.5, 1.2, 0.5, 1.2]
    signed = [-w * a for w, a in zip(weights, ADVANTAGES, strict=True)]
    assert logp_T.grad.tolist() == pytest.approx(signed)


def decoupled_example():
    """Sampled at 0.1, at the start of the update 0.2, 0.05 and 0.8, now 10 % more."""
    proximal = torch.tensor([log(0.2), log(0.05), log(0.8)], dtype=torch.float64)
    given = stream([log(0.1)] * 3, [1.0, 1.0, 1.0], proximal_T=proximal)
    return (proximal + log(1.1)).requires_grad_(), given


@pytest.mark.parametrize(
    ("over_cap", "weights"), [("clamp", [2.0, 0.5, 5.0]), ("reject", [2.0, 0.5, 0.0])]
)
def test_decoupled_loss_by_hand(over_cap, weights):
    logp_T, given = decoupled_example()
    loss_T = decoupled_loss(logp_T, given, weight_cap=5.0, over_cap=over_cap, **BOUNDS)
    assert loss_T.tolist() == pytest.approx([-1.1 * w for w in weights])

    def value(logp_T):
        return decoupled_loss(logp_T, given, weight_cap=5.0, over_cap=over_cap, **BOUNDS).sum()

    loss_T.sum().backward()
    assert logp_T.grad.tolist() == pytest.approx(
        finite_differences(value, logp_T.detach()), abs=1e-6
    )


def test_decoupled_equals_clipped_where_the_update_starts_at_the_sampler():
    logp_T, given = example()
    same = replace(given, proximal_T=given.behave_T)
    assert torch.equal(
        decoupled_loss(logp_T, same, weight_cap=5.0, **BOUNDS),
        clipped_loss(logp_T, given, **BOUNDS),
    )


def test_decoupled_without_proximal_log_probabilities_is_refused():
    logp_T, given = example()
    with pytest.raises(ValueError, match="needs proximal_T"):
        decoupled_loss(logp_T, given, weight_cap=5.0, **BOUNDS)


def test_proximal_log_probabilities_lie_between_the_versions():
    version_T = torch.tensor([0, 4, 6, 8])
    behave_T, logp_T = torch.full((4,), -2.0), torch.full((4,), -1.0)
    between_T = proximal_between(logp_T, behave_T, version_T, proximal=6, current=8)
    # Shares of the way: 6/8, 2/4, none, none.
    assert between_T.tolist() == pytest.approx([-1.25, -1.5, -2.0, -2.0])


@pytest.mark.parametrize("loss_of", [clipped_loss, gspo_loss, cispo_loss])
def test_tokens_outside_the_mask_have_no_gradient_even_if_not_finite(loss_of):
    logp_T, given = example()
    mask_T = torch.tensor([True, True, True, True, True, False])
    with torch.no_grad():
        logp_T[5] = float("-inf")
    given = replace(given, mask_T=mask_T, tokens_S=torch.tensor([5]))
    loss_T = loss_of(logp_T, given, **BOUNDS)
    counts = GlobalCounts(tokens=5, sequences=1)
    normalised_sum(loss_T, given, counts, "token").backward()
    assert torch.isfinite(logp_T.grad).all()
    assert logp_T.grad[5] == 0.0


def test_a_huge_ratio_stays_finite():
    logp_T = torch.tensor([0.0], requires_grad=True)
    given = stream([-200.0], [-1.0])
    assert float(clipped_loss(logp_T, given, **BOUNDS).detach()) == pytest.approx(exp(20.0))
