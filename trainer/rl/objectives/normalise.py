"""The one place where losses of tokens, or of pairs, become a number.

T tokens of this rank's stream, S sequences in it, P preference pairs.

Invariants, each asserted in tests/trainer/rl/objectives/test_normalise.py:
- the sum over all ranks and rounds is the objective: neither ranks, rounds, packing nor a sequence
  cut over ranks change value or gradient, since every denominator is a count of the whole step;
- tokens outside the mask have neither value nor gradient, even where they are not finite;
- with `token` each token weighs the same, with `sequence` each sequence, with `constant` each token
  by a constant of the run.
"""

import torch
from torch import Tensor

from trainer.rl.objectives.config import Normalisation
from trainer.rl.objectives.stream import GlobalCounts, PolicyStream


def normalised_sum(
    loss_T: Tensor, stream: PolicyStream, counts: GlobalCounts, normalisation: Normalisation
) -> Tensor:
    """This stream's part of the step's loss: add the parts of ranks and rounds, divide no more.

    `token` is DAPO's mean (arXiv 2503.14476, eq. 8), `sequence` GRPO's mean of means
    (arXiv 2402.03300, eq. 3), `constant` Dr.GRPO's unbiased sum (arXiv 2503.20783, section 3).
    """
    kept_T = torch.where(stream.mask_T, loss_T, 0.0)
    if normalisation == "token":
        return kept_T.sum() / counts.tokens
    if normalisation == "constant":
        return kept_T.sum() / (counts.sequences * counts.max_response_tokens)
    weight_S = 1.0 / (counts.sequences * stream.tokens_S.clamp(min=1).to(loss_T.dtype))
    return (kept_T * weight_S[stream.sequence_T]).sum()


def normalised_pair_sum(loss_P: Tensor, counts: GlobalCounts) -> Tensor:
    """This stream's part of the mean over all pairs of the step."""
    if counts.pairs < loss_P.numel():
        raise ValueError(
            f"counts.pairs={counts.pairs} is less than the {loss_P.numel()} pairs of this stream; "
            "pass the number of pairs of the whole step"
        )
    return loss_P.sum() / max(counts.pairs, 1)
