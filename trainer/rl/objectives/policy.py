"""The configured objective of a stream: one loss, and sums that say how it went.

T tokens of a stream, S sequences in it, P preference pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.rl.objectives.config import ObjectiveConfig, Published
from trainer.rl.objectives.divergence import kl_estimate
from trainer.rl.objectives.normalise import normalised_pair_sum, normalised_sum
from trainer.rl.objectives.preference import preference_loss, preference_margins, sequence_logp
from trainer.rl.objectives.ratios import (
    aipo_loss,
    cispo_loss,
    clipped_loss,
    clipped_mask,
    decoupled_loss,
    gspo_loss,
)
from trainer.rl.objectives.stream import GlobalCounts, PolicyStream, log_ratio


@dataclass(frozen=True)
class PolicyLoss:
    """This stream's part of the step. Sums: add those of all ranks, divide by global counts."""

    loss: Tensor
    """Scalar to call backward on, already divided by the step's counts."""

    clipped_sum: Tensor
    """Tokens without gradient because their ratio left the bounds; 0 for objectives that clip no
    single tokens (gspo, cispo, aipo)."""

    kl_sum: Tensor
    """k3 estimates of the distance from the sampling policy to this one."""

    reference_kl_sum: Tensor
    """The configured estimates of the distance to the reference; 0 without one."""


def policy_loss(
    logp_T: Tensor,
    stream: PolicyStream,
    counts: GlobalCounts,
    config: ObjectiveConfig,
    complete: Callable[[Tensor], Tensor] | None = None,
) -> PolicyLoss:
    """The objective `config` names, on this rank's stream.

    `complete` adds partial sums [S] over the ranks that hold a sequence together; only gspo calls
    it, and then all of them must. Raises ValueError where the stream lacks what the objective
    needs.
    """
    chosen = config.resolved()
    loss_T = _token_loss(logp_T, stream, config, chosen, complete)
    reference_T = torch.zeros_like(loss_T.detach())
    if config.kl_coefficient > 0.0:
        if stream.reference_T is None:
            raise ValueError(
                f"kl_coefficient={config.kl_coefficient} needs the reference model's "
                "log-probabilities; pass reference_T, or set kl_coefficient to 0"
            )
        kl_T = kl_estimate(logp_T, stream.reference_T, stream.mask_T, config.kl_estimator)
        loss_T = loss_T + config.kl_coefficient * kl_T
        reference_T = kl_T.detach()
    drift_T = log_ratio(logp_T.detach(), stream.behave_T, stream.mask_T)
    clipped_T = clipped_mask(logp_T, stream, clip_low=chosen.clip_low, clip_high=chosen.clip_high)
    return PolicyLoss(
        loss=normalised_sum(loss_T, stream, counts, chosen.normalisation),
        clipped_sum=clipped_T.sum() if _clips(config) else clipped_T.new_zeros(()).long(),
        kl_sum=(drift_T.exp() - 1.0 - drift_T).sum(),
        reference_kl_sum=reference_T.sum(),
    )


def pair_loss(
    logp_T: Tensor,
    stream: PolicyStream,
    pairs_P2: Tensor,
    counts: GlobalCounts,
    config: ObjectiveConfig,
) -> Tensor:
    """This stream's part of the dpo or rso loss; both sequences of a pair lie whole in it."""
    if stream.reference_T is None:
        raise ValueError(f"kind={config.kind} compares with a reference model; pass reference_T")
    mask_T, sequence_T, sequences = stream.mask_T, stream.sequence_T, len(stream.tokens_S)
    margin_P = preference_margins(
        sequence_logp(logp_T, mask_T, sequence_T, sequences),
        sequence_logp(stream.reference_T, mask_T, sequence_T, sequences),
        pairs_P2,
    )
    loss_P = preference_loss(margin_P, beta=config.beta, kind=config.preference_loss)
    return normalised_pair_sum(loss_P, counts)


def _token_loss(
    logp_T: Tensor,
    stream: PolicyStream,
    config: ObjectiveConfig,
    chosen: Published,
    complete: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    low, high, cap = chosen.clip_low, chosen.clip_high, chosen.weight_cap
    if config.kind == "gspo":
        return gspo_loss(logp_T, stream, clip_low=low, clip_high=high, complete=complete)
    if config.kind == "cispo":
        return cispo_loss(logp_T, stream, clip_low=low, clip_high=high)
    if config.kind == "aipo":
        return aipo_loss(logp_T, stream, weight_cap=cap)
    if config.kind == "decoupled_ppo":
        return decoupled_loss(
            logp_T,
            stream,
            clip_low=low,
            clip_high=high,
            weight_cap=cap,
            over_cap=config.over_cap,
            dual_clip=config.dual_clip,
        )
    return clipped_loss(logp_T, stream, clip_low=low, clip_high=high, dual_clip=config.dual_clip)


def _clips(config: ObjectiveConfig) -> bool:
    """Whether tokens out of bounds lose their gradient, each by itself."""
    return config.kind not in ("aipo", "cispo", "gspo")
