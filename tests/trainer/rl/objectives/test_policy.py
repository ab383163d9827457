"""Each configured objective by hand, from log-probabilities to the step's loss."""

from dataclasses import replace
from math import exp, log

import pytest
import torch

from trainer.rl.objectives.config import ObjectiveConfig
from trainer.rl.objectives.policy import pair_loss, policy_loss
from trainer.rl.objectives.stream import GlobalCounts, PolicyStream

COUNTS = GlobalCounts(tokens=8, sequences=4, max_response_tokens=5)
RATIOS = [1.0, 2.0, 0.5, 1.1]


def example(dtype=torch.float32):
    """Two of the step's four responses: ratios (1, 2, 0.5) with A=1, (1.1) with A=-2."""
    behave_T = torch.full((5,), log(0.1), dtype=dtype)
    behave_T[4] = float("nan")
    stream = PolicyStream(
        mask_T=torch.tensor([True, True, True, True, False]),
        sequence_T=torch.tensor([0, 0, 0, 1, 0]),
        tokens_S=torch.tensor([3, 1]),
        advantage_T=torch.tensor([1.0, 1.0, 1.0, -2.0, 0.0], dtype=dtype),
        behave_T=behave_T,
    )
    logp_T = torch.tensor([*(log(0.1 * r) for r in RATIOS), 0.0], dtype=dtype)
    return logp_T.requires_grad_(), stream


EXPECTED = {
    # Kept gains are 1, 1.2 (1.28 with clip-higher), 0.5 and -2.2.
    "grpo": -((1 + 1.2 + 0.5) / 3 - 2.2) / 4,
    "dr_grpo": -(2.7 - 2.2) / (4 * 5),
    "seed_grpo": -(2.7 - 2.2) / (4 * 5),
    "dapo": -(1 + 1.28 + 0.5 - 2.2) / 8,
    # Geometric means 1 and 1.1; 1.1 is a loss, which is not clipped above.
    "gspo": -(1.0 - 2.2) / 4,
    "cispo": -(log(0.1) + 2 * log(0.2) + 0.5 * log(0.05) - 2.2 * log(0.11)) / 8,
    "aipo": -(log(0.1) + 2 * log(0.2) + 0.5 * log(0.05) - 2.2 * log(0.11)) / 8,
    # The update starts at the sampler: weights of one.
    "decoupled_ppo": -(2.7 - 2.2) / 8,
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_objective_by_hand(kind):
    logp_T, stream = example()
    if kind == "decoupled_ppo":
        stream = replace(stream, proximal_T=stream.behave_T.clone())
    found = policy_loss(logp_T, stream, COUNTS, ObjectiveConfig(kind=kind))
    assert float(found.loss.detach()) == pytest.approx(EXPECTED[kind], rel=1e-5)
    found.loss.backward()
    assert torch.isfinite(logp_T.grad).all()
    assert logp_T.grad[4] == 0.0


def test_on_policy_all_have_the_gradient_of_the_plain_policy_gradient():
    for kind in ("dapo", "cispo", "aipo", "decoupled_ppo"):
        _, stream = example()
        at = stream.behave_T.clone().requires_grad_()
        stream = replace(stream, proximal_T=stream.behave_T)
        policy_loss(at, stream, COUNTS, ObjectiveConfig(kind=kind)).loss.backward()
        assert at.grad.tolist() == pytest.approx([-1 / 8, -1 / 8, -1 / 8, 2 / 8, 0.0]), kind


def test_distance_to_the_reference_is_added_before_normalisation():
    logp_T, stream = example()
    plain = policy_loss(logp_T, stream, COUNTS, ObjectiveConfig(kind="grpo"))
    # The reference is e times as likely at every token: k3 = e - 1 - 1.
    stream = replace(stream, reference_T=logp_T.detach() + 1.0)
    config = ObjectiveConfig(kind="grpo", kl_coefficient=0.1)
    found = policy_loss(logp_T, stream, COUNTS, config)
    k3 = exp(1.0) - 2.0
    # Two of four sequences lie here, each with a mean of k3.
    assert float((found.loss - plain.loss).detach()) == pytest.approx(0.1 * k3 * 2 / 4, rel=1e-4)
    assert float(found.reference_kl_sum) == pytest.approx(4 * k3, rel=1e-4)


def test_sums_say_how_far_the_policy_moved():
    logp_T, stream = example()
    found = policy_loss(logp_T, stream, COUNTS, ObjectiveConfig(kind="grpo"))
    assert int(found.clipped_sum) == 1
    assert float(found.kl_sum) == pytest.approx(sum(r - 1 - log(r) for r in RATIOS), rel=1e-5)
    assert int(policy_loss(logp_T, stream, COUNTS, ObjectiveConfig(kind="cispo")).clipped_sum) == 0


@pytest.mark.parametrize("kind", ["grpo", "gspo", "dapo", "cispo"])
def test_bf16_log_probabilities_are_compared_in_fp32(kind):
    logp_T, stream = example(torch.bfloat16)
    found = policy_loss(logp_T, stream, COUNTS, ObjectiveConfig(kind=kind))
    assert found.loss.dtype == torch.float32


def test_dpo_and_rso_learn_from_pairs():
    logp_T = torch.tensor([-1.0, -1.0, -3.0, 0.0], requires_grad=True)
    zeros_T = torch.zeros(4)
    stream = PolicyStream(
        mask_T=torch.tensor([True, True, True, False]),
        sequence_T=torch.tensor([0, 0, 1, 1]),
        tokens_S=torch.tensor([2, 1]),
        advantage_T=zeros_T,
        behave_T=zeros_T,
        reference_T=torch.tensor([-1.5, -1.5, -2.0, float("nan")]),
    )
    counts = GlobalCounts(tokens=3, sequences=2, pairs=2)
    pairs_P2 = torch.tensor([[0, 1]])
    # Gains 1 and -1: margin 2.
    for kind in ("dpo", "rso"):
        loss = pair_loss(logp_T, stream, pairs_P2, counts, ObjectiveConfig(kind=kind, beta=0.5))
        assert float(loss.detach()) == pytest.approx(log(1 + exp(-1)) / 2)
    hinge = ObjectiveConfig(kind="rso", beta=0.25, preference_loss="hinge")
    assert pair_loss(logp_T, stream, pairs_P2, counts, hinge).item() == pytest.approx(0.25)
    with pytest.raises(ValueError, match="pass reference_T"):
        pair_loss(logp_T, replace(stream, reference_T=None), pairs_P2, counts, hinge)
    with pytest.raises(ValueError, match="learns from pairs"):
        policy_loss(logp_T, stream, counts, hinge)


def test_a_distance_without_a_reference_is_refused():
    logp_T, stream = example()
    with pytest.raises(ValueError, match="needs the reference model"):
        policy_loss(logp_T, stream, COUNTS, ObjectiveConfig(kl_coefficient=0.1))
