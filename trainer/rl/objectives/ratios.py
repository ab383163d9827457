"""Objectives of rewards, as losses per token that are still to be normalised.

T tokens of a stream, S sequences in it. r = exp(log pi - log pi_old) of a token, A its advantage.
Losses are to be minimised. Each function needs `logp_T` [T], the log-probabilities under the
weights being trained, with gradients; everything in `stream` is taken as constant. Use, in plain
PyTorch:

    loss_T = clipped_loss(logp_T, stream, clip_low=0.2, clip_high=0.28)
    normalised_sum(loss_T, stream, counts, "token").backward()
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from trainer.rl.objectives.stream import PolicyStream, log_ratio, wide


def clipped_loss(
    logp_T: Tensor,
    stream: PolicyStream,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) per token.

    PPO's surrogate (arXiv 1707.06347, eq. 7) as GRPO (2402.03300, eq. 3), Dr.GRPO (2503.20783) and
    DAPO (2503.14476, eq. 8: clip_high above clip_low) use it; they differ in advantage and
    normalisation. `dual_clip` c bounds it by c |A| where A < 0 (1912.09729, eq. 5).
    """
    ratio_T = log_ratio(logp_T, stream.old_T, stream.mask_T).exp()
    return _clipped(ratio_T, stream.advantage_T, clip_low, clip_high, dual_clip)


def gspo_loss(
    logp_T: Tensor,
    stream: PolicyStream,
    *,
    clip_low: float,
    clip_high: float,
    complete: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The clipped loss with the sequence's ratio s = (pi(y) / pi_old(y))^(1 / |y|) at each token.

    GSPO (arXiv 2507.18071, eq. 5) in its token form (eq. 14): with `sequence` normalisation and one
    advantage per sequence, value and gradient are those of the sequence form. Where sequences are
    cut over ranks, `complete` adds up the ranks' partial sums [S]; it needs no gradient.
    """
    with torch.no_grad():
        log_ratio_T = log_ratio(logp_T, stream.old_T, stream.mask_T)
        sum_S = log_ratio_T.new_zeros(stream.tokens_S.shape)
        sum_S.index_add_(0, stream.sequence_T, log_ratio_T)
        total_S = sum_S if complete is None else complete(sum_S)
        ratio_S = (total_S / stream.tokens_S.clamp(min=1)).exp()
    here_T = log_ratio(logp_T, logp_T.detach(), stream.mask_T).exp()
    ratio_T = ratio_S[stream.sequence_T] * here_T
    return _clipped(ratio_T, stream.advantage_T, clip_low, clip_high, None)


def cispo_loss(
    logp_T: Tensor, stream: PolicyStream, *, clip_low: float, clip_high: float
) -> Tensor:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi per token.

    CISPO (arXiv 2506.13585, eq. 4): weights are clipped, gradients are not, so no token is lost.
    """
    ratio_T = log_ratio(logp_T.detach(), stream.old_T, stream.mask_T).exp()
    weight_T = ratio_T.clamp(1.0 - clip_low, 1.0 + clip_high)
    return _weighted(weight_T, logp_T, stream)


def aipo_loss(logp_T: Tensor, stream: PolicyStream, *, weight_cap: float) -> Tensor:
    """-sg(min(pi / mu, weight_cap)) A log pi per token, mu being the sampler's probability.

    AIPO of LlamaRL (arXiv 2505.24034, section 5): the correction for asynchronous sampling is cut
    off above and never below.
    """
    weight_T = log_ratio(logp_T.detach(), stream.behave_T, stream.mask_T).exp()
    return _weighted(weight_T.clamp(max=weight_cap), logp_T, stream)


def decoupled_loss(
    logp_T: Tensor,
    stream: PolicyStream,
    *,
    clip_low: float,
    clip_high: float,
    weight_cap: float,
    over_cap: Literal["clamp", "reject"] = "clamp",
    dual_clip: float | None = None,
) -> Tensor:
    """(pi_prox / mu) times the clipped loss around pi_prox, per token.

    Decoupled PPO (arXiv 2110.00641, eq. 6; AReaL, 2505.24298, eq. 5): clipping refers to recent
    weights, the correction to those that sampled. Raises ValueError without `proximal_T`. A token
    over the cap is clamped or rejected; either way it stays in the denominator.
    """
    if stream.proximal_T is None:
        raise ValueError(
            "decoupled PPO needs proximal_T, the log-probabilities at the start of the update; "
            "compute them, or approximate them with `proximal_between`"
        )
    weight_T = log_ratio(stream.proximal_T, stream.behave_T, stream.mask_T).exp().detach()
    if over_cap == "reject":
        weight_T = torch.where(weight_T > weight_cap, 0.0, weight_T)
    else:
        weight_T = weight_T.clamp(max=weight_cap)
    loss_T = clipped_loss(
        logp_T, stream, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    return weight_T * loss_T


def proximal_between(
    logp_T: Tensor, behave_T: Tensor, version_T: Tensor, *, proximal: int, current: int
) -> Tensor:
    """[T]: log-probabilities under weights of version `proximal`, without running them.

    AReaL's log-linear approximation: on the line from the version that sampled each token
    (`version_T`) to `current`, whose log-probabilities are `logp_T`. No gradient.
    """
    span_T = (current - version_T).clamp(min=1)
    share_T = ((proximal - version_T) / span_T).clamp(0.0, 1.0)
    behave_T, logp_T = wide(behave_T), wide(logp_T.detach())
    return behave_T + share_T * (logp_T - behave_T)


def clipped_mask(
    logp_T: Tensor, stream: PolicyStream, *, clip_low: float, clip_high: float
) -> Tensor:
    """bool [T]: trained tokens whose ratio is clipped away, so that they have no gradient."""
    ratio_T = log_ratio(logp_T.detach(), stream.old_T, stream.mask_T).exp()
    above_T = (ratio_T > 1.0 + clip_high) & (stream.advantage_T > 0)
    below_T = (ratio_T < 1.0 - clip_low) & (stream.advantage_T < 0)
    return (above_T | below_T) & stream.mask_T


def _clipped(
    ratio_T: Tensor,
    advantage_T: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    advantage_T = wide(advantage_T).detach()
    bounded_T = ratio_T.clamp(1.0 - clip_low, 1.0 + clip_high)
    gain_T = torch.minimum(ratio_T * advantage_T, bounded_T * advantage_T)
    if dual_clip is not None:
        floor_T = dual_clip * advantage_T
        gain_T = torch.where(advantage_T < 0, torch.maximum(gain_T, floor_T), gain_T)
    return -gain_T


def _weighted(weight_T: Tensor, logp_T: Tensor, stream: PolicyStream) -> Tensor:
    """Policy gradient with constant weights."""
    logp_T = torch.where(stream.mask_T, wide(logp_T), 0.0)
    return -weight_T.detach() * wide(stream.advantage_T).detach() * logp_T
