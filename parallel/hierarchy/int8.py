"""Weights as int8 in blocks that share a scale, for a gather with about a quarter of fp32's bytes.

The scheme of ZeRO++'s quantized weights (Wang et al., 2023, arXiv 2306.10209, section 3.1). A block
is `BLOCK` neighbouring weights of one parameter's slot; its scale is its largest magnitude / 127.

Guarantees, each asserted in tests/parallel/hierarchy/test_int8.py:
- a decoded weight differs from the encoded one by at most its block's largest magnitude / 254,
  and by its own rounding to the dtype it is decoded to;
- blocks do not reach over parameters;
- a message is as long as `volume.message_bytes` says.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.hierarchy.shards import Slot
from parallel.hierarchy.volume import BLOCK, blocks_of

# S elements of a slot; N blocks; M bytes of a message; B weights in a block.


def encode(values_S: Tensor, slots: Sequence[Slot]) -> Tensor:
    """The message of fp32 values: N x B bytes of weights, then N fp32 scales. uint8, [M].

    A block with a value that is not finite decodes to NaN as a whole.
    """
    blocks_NB = torch.cat([_blocks(values_S[s.start : s.start + s.elements]) for s in slots])
    scale_N = blocks_NB.abs().amax(dim=1) / 127.0
    divisor_N1 = torch.where(scale_N > 0, scale_N, torch.ones_like(scale_N)).unsqueeze(1)
    codes_NB = (blocks_NB / divisor_N1).nan_to_num_(0.0).round_().to(torch.int8)
    scale_N = torch.where(scale_N.isfinite(), scale_N, torch.nan)
    return torch.cat([codes_NB.view(torch.uint8).flatten(), scale_N.view(torch.uint8)])


def decode(messages_M: Tensor, slots: Sequence[Slot], dtype: torch.dtype) -> Tensor:
    """The values in messages [..., M], as [..., S] of `dtype`."""
    blocks = sum(blocks_of(slot.elements) for slot in slots)
    codes, scales = messages_M.split([blocks * BLOCK, blocks * 4], dim=-1)
    codes_NB = codes.view(torch.int8).unflatten(-1, (blocks, BLOCK))
    scale_N1 = scales.contiguous().view(torch.float32).unsqueeze(-1)
    values = messages_M.new_empty(
        *messages_M.shape[:-1], sum(slot.elements for slot in slots), dtype=dtype
    )
    first = 0
    for slot in slots:
        mine = slice(first, first + blocks_of(slot.elements))
        first = mine.stop
        decoded = (codes_NB[..., mine, :] * scale_N1[..., mine, :]).flatten(-2)
        values[..., slot.start : slot.start + slot.elements] = decoded[..., : slot.elements]
    return values


def _blocks(values: Tensor) -> Tensor:
    padding = -values.numel() % BLOCK
    return F.pad(values, (0, padding)).view(-1, BLOCK)
