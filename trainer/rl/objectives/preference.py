"""Objectives of preference pairs.

T tokens of a stream, S sequences in it, P pairs. Pairs for them come from
`trainer/rl/rejection.py` (RSO) or from a data set. Use, in plain PyTorch:

    margin_P = preference_margins(sequence_logp(logp_T, mask_T, sequence_T, S), reference_S, pairs)
    preference_loss(margin_P, beta=0.1).mean().backward()
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.rl.objectives.stream import wide


def sequence_logp(logp_T: Tensor, mask_T: Tensor, sequence_T: Tensor, sequences: int) -> Tensor:
    """[S]: log-probability of each response, the sum over its tokens in the mask."""
    kept_T = torch.where(mask_T, wide(logp_T), 0.0)
    return kept_T.new_zeros(sequences).index_add(0, sequence_T, kept_T)


def preference_margins(logp_S: Tensor, reference_S: Tensor, pairs_P2: Tensor) -> Tensor:
    """[P]: how much more than the reference the policy prefers the chosen to the rejected answer.

    `pairs_P2` holds the indices of chosen and rejected sequence.
    """
    gain_S = logp_S - reference_S.detach()
    return gain_S[pairs_P2[:, 0]] - gain_S[pairs_P2[:, 1]]


def preference_loss(
    margin_P: Tensor, *, beta: float, kind: Literal["sigmoid", "hinge"] = "sigmoid"
) -> Tensor:
    """[P]: loss of each pair.

    `sigmoid` is DPO (arXiv 2305.18290, eq. 7), which RSO calls sigmoid-norm; `hinge` is
    max(0, 1 - beta margin), RSO's hinge-norm (arXiv 2309.06657, section 3.3; SLiC's loss with the
    reference's log-probabilities taken off).
    """
    if kind == "hinge":
        return (1.0 - beta * margin_P).clamp(min=0.0)
    return -F.logsigmoid(beta * margin_P)
