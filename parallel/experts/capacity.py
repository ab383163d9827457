"""Which rows an expert takes where its capacity is bounded.

T tokens, k experts per token, E experts, S packed sequences.

Capacity is max(ceil(tokens k / E × factor), 4) per expert (DeepSpeed-MoE, arXiv 2201.05596;
GShard, arXiv 2006.16668), counted within each packed sequence.

Guarantees, each asserted in tests/parallel/experts/test_capacity.py:
- no expert takes more rows of a sequence than its capacity, and none is dropped while there is
  room;
- first choices come before second ones, earlier tokens before later ones;
- what is dropped depends on the sequence alone, so any split of sequences over ranks drops the
  same;
- padding is never taken.
"""

import torch
from torch import Tensor

MIN_CAPACITY = 4


def within_capacity(
    experts_Tk: Tensor, member_ST: Tensor, *, num_experts: int, factor: float
) -> Tensor:
    """bool [T, k]: whether the expert takes the token.

    `member_ST` is true on the tokens of each sequence; a token is in at most one. Where ranks hold
    a sequence together, each counts its own part of it as a sequence.
    """
    top_k = experts_Tk.shape[1]
    tokens_S = member_ST.sum(dim=1)
    capacity_S = torch.ceil(tokens_S * top_k / num_experts * factor).clamp(min=MIN_CAPACITY)
    sequence_T = member_ST.to(torch.int8).argmax(dim=0)
    # All first choices before all second ones: the order in which rows are taken.
    key_R = (sequence_T.unsqueeze(0) * num_experts + experts_Tk.t()).flatten()
    real_T = member_ST.any(dim=0)
    key_R = key_R.masked_fill(~real_T.repeat(top_k), member_ST.shape[0] * num_experts)
    sorted_R, order_R = key_R.sort(stable=True)
    place_R = torch.arange(key_R.numel(), device=key_R.device)
    place_R = place_R - torch.searchsorted(sorted_R, sorted_R)
    room_R = torch.cat([capacity_S, capacity_S.new_zeros(1)])[sorted_R // num_experts]
    kept_R = torch.empty_like(key_R, dtype=torch.bool)
    kept_R[order_R] = place_R < room_R
    return kept_R.view(top_k, -1).t()
