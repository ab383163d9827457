"""What an objective is given: packed responses as flat tensors, and the step's global counts.

T tokens of this rank's stream, S sequences in it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""Ratios are computed up to e^20: beyond, fp32 sums would lose every other token."""


@dataclass(frozen=True, kw_only=True)
class GlobalCounts:
    """What one optimizer step trains on, over all ranks and rounds. The only denominators."""

    tokens: int
    """Tokens with a loss, before any is left out for its weight."""

    sequences: int
    """Responses, or episodes."""

    max_response_tokens: int = 1
    """Longest response the recipe allows; a constant of the run."""

    pairs: int = 0
    """Preference pairs."""

    def __post_init__(self) -> None:
        if min(self.tokens, self.sequences, self.max_response_tokens) < 1 or self.pairs < 0:
            raise ValueError(
                f"{self} must count at least one token and one sequence; leave out a step that has "
                "nothing to train on"
            )


@dataclass(frozen=True, kw_only=True)
class PolicyStream:
    """Sampled tokens of one packed stream. Values where the mask is False are never read."""

    mask_T: Tensor
    """bool: whether the token was sampled and is trained on; False for prompts, observations of
    the environment and padding."""

    sequence_T: Tensor
    """int64: index in [0, S) of the token's sequence; any for padding."""

    tokens_S: Tensor
    """Trained tokens of each whole sequence, wherever in the sequence group they lie."""

    advantage_T: Tensor
    """Advantage of the token."""

    behave_T: Tensor
    """Log-probability under the weights and the sampler that drew the token, as recorded then."""

    proximal_T: Tensor | None = None
    """Log-probability under the weights at the start of the update; None: same as behave_T."""

    reference_T: Tensor | None = None
    """Log-probability under the reference model, where a distance to it is wanted."""

    @property
    def old_T(self) -> Tensor:
        """The log-probabilities that ratios and clipping refer to."""
        return self.behave_T if self.proximal_T is None else self.proximal_T


def wide(values: Tensor) -> Tensor:
    """At least fp32: in bf16 a log-probability of 8 is off by 3 % of a ratio."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def log_ratio(logp_T: Tensor, base_T: Tensor, mask_T: Tensor) -> Tensor:
    """[T]: log of the ratio of two probabilities; 0, without gradient, outside the mask."""
    difference_T = wide(logp_T) - wide(base_T)
    return torch.where(mask_T, difference_T, 0.0).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
