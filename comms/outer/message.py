"""What one island sends of one fragment: a header and the outer gradient in few bits.

Guarantees, each asserted in tests/comms/outer/test_message.py:
- a message's length depends on the number of entries and the format alone;
- an outer gradient that is not finite travels as a header without weight, and changes no mean;
- means are made in fp32 in the order of the messages, so equal messages give equal bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comms.compression.blocks import BlockCodec
from comms.outer import e3m0
from comms.outer.config import OuterWire

HEADER_BYTES = 8
"""The weight as fp32, then 1 or 0 for an island that leaves after this exchange as int32."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The weighted mean of outer gradients that are finite; None where none is."""

    value: Tensor | None
    finite: tuple[bool, ...]
    leaving: tuple[int, ...]
    """Places in the group of islands that leave after this exchange."""


def message_bytes(numel: int, wire: OuterWire) -> int:
    """Bytes of one message of `numel` entries."""
    if wire == "e3m0":
        return HEADER_BYTES + e3m0.code_bytes(numel)
    if wire == "int8":
        return HEADER_BYTES + BlockCodec("int8").code_bytes(numel)
    return HEADER_BYTES + 4 * numel


def encode(
    gradient: Tensor, wire: OuterWire, *, weight: float, finite: bool, leaving: bool
) -> Tensor:
    """The message of a flat fp32 outer gradient, as uint8 on its device."""
    device = gradient.device
    header = torch.cat(
        [
            torch.tensor([weight if finite else 0.0], dtype=torch.float32).view(torch.uint8),
            torch.tensor([int(leaving)], dtype=torch.int32).view(torch.uint8),
        ]
    ).to(device)
    if not finite:
        size = message_bytes(gradient.numel(), wire) - HEADER_BYTES
        return torch.cat([header, torch.zeros(size, dtype=torch.uint8, device=device)])
    if wire == "e3m0":
        code = e3m0.encode(gradient)
    elif wire == "int8":
        code = BlockCodec("int8").encode(gradient.clone(), gradient.numel())
    else:
        code = gradient.contiguous().view(torch.uint8)
    return torch.cat([header, code])


def mean(messages: Sequence[Tensor], numel: int, wire: OuterWire) -> Mean:
    """The mean of the outer gradients of all messages, in their order."""
    # Copies, as a message may begin anywhere, and numbers are read from their own boundaries.
    headers = [message[:HEADER_BYTES].clone().cpu() for message in messages]
    weights = [float(header[:4].view(torch.float32)) for header in headers]
    leaving = [n for n, header in enumerate(headers) if int(header[4:].view(torch.int32))]
    total_weight = sum(weights)
    if total_weight == 0:
        return Mean(None, (False,) * len(messages), tuple(leaving))
    total = torch.zeros(numel, device=messages[0].device)
    for message, weight in zip(messages, weights, strict=True):
        if weight:
            _add_decoded(total, message[HEADER_BYTES:], weight / total_weight, wire)
    return Mean(total, tuple(weight > 0 for weight in weights), tuple(leaving))


def _add_decoded(total: Tensor, code: Tensor, weight: float, wire: OuterWire) -> None:
    if wire == "e3m0":
        e3m0.add_decoded(total, code, weight)
    elif wire == "int8":
        value = torch.zeros_like(total)
        BlockCodec("int8").decode(code, value, total.numel())
        total.add_(value, alpha=weight)
    else:
        total.add_(code.clone().view(torch.float32), alpha=weight)
