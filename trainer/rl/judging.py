"""The objective of a run on one round of samples, with what the round says of its numbers.

T tokens of this rank in one round, S samples in its group's stream.

Whose log-probabilities a ratio refers to: objectives that clip compare models, so that a ratio of
fresh tokens is 1 whatever the sampler left out; those that correct for sampling (aipo,
decoupled_ppo) weigh by what was sampled from. Temperature, top-k and top-p are the difference, and
`trust/mask` shows how large it is.

Guarantees, each asserted in tests/trainer/rl/test_rounds.py:
- values of rounds and ranks add up to the objective of the whole step;
- figures of tokens that are not trained count nowhere.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.data.batch import IGNORED
from trainer.rl.batch import PolicyBatch
from trainer.rl.objectives.config import ObjectiveConfig
from trainer.rl.objectives.policy import PolicyLoss, pair_loss, policy_loss
from trainer.rl.objectives.stream import GlobalCounts, PolicyStream

FIGURES = ("clipped", "kl", "reference_kl", "kernel", "version")
"""Sums over the trained tokens: without gradient for being clipped; distance from the sampling
policy and from the reference; absolute difference between trainer and engine at the same weights;
log-ratio to the engine's at older weights."""

CORRECTED = ("aipo", "decoupled_ppo")
"""Objectives that weigh by the probability of what was sampled from."""


def judge(
    logp_T: Tensor,
    batch: PolicyBatch,
    *,
    counts: GlobalCounts,
    config: ObjectiveConfig,
    complete: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The round's part of the objective times `counts.tokens`, and the sums of FIGURES [5] fp32.

    `complete` as in `policy_loss`. The factor makes it a sum over tokens like any loss: what is
    divided by the step's trained tokens is the objective.
    """
    policy = batch.policy
    stream = stream_of(logp_T, batch, config)
    if config.learns_from_pairs:
        loss = _pairs(logp_T, batch, stream, counts, config)
        zero = logp_T.detach().new_zeros(())
        found = PolicyLoss(loss, zero, zero, zero)
    else:
        found = policy_loss(logp_T, stream, counts, config, complete)
    drift_T = torch.where(stream.mask_T, logp_T.detach() - policy.of("model_log_probs"), 0.0)
    current_T = policy.of("current")
    sums = (
        found.clipped_sum,
        found.kl_sum,
        found.reference_kl_sum,
        torch.where(current_T, drift_T.abs(), 0.0).sum(),
        torch.where(current_T, 0.0, drift_T).sum(),
    )
    return found.loss * counts.tokens, torch.stack([part.detach().float() for part in sums])


def stream_of(logp_T: Tensor, batch: PolicyBatch, config: ObjectiveConfig) -> PolicyStream:
    """What the objective is given of a round."""
    policy = batch.policy
    behave = "log_probs" if config.kind in CORRECTED else "model_log_probs"
    return PolicyStream(
        mask_T=batch.labels_T != IGNORED,
        sequence_T=policy.of("sequence"),
        tokens_S=policy.tokens_S,
        advantage_T=policy.of("advantage"),
        behave_T=policy.of(behave),
        # One update is made of a batch: at its start the weights are those being trained.
        proximal_T=logp_T.detach() if config.kind == "decoupled_ppo" else None,
        reference_T=policy.reference_T,
    )


def _pairs(
    logp_T: Tensor,
    batch: PolicyBatch,
    stream: PolicyStream,
    counts: GlobalCounts,
    config: ObjectiveConfig,
) -> Tensor:
    pairs_P2 = batch.policy.pairs_P2
    if not len(pairs_P2):
        # Of padding alone: every rank's backward reaches every parameter.
        return logp_T.sum() * 0.0
    return pair_loss(logp_T, stream, pairs_P2, counts, config)
