"""Pure: memory and traffic of hierarchical sharding, to the byte.

With Φ parameters of b bytes, a rank holds Φ b / r_w of weights, 4 Φ / r_g of gradients and
12 Φ / r_o of master weights and moments (InternEvo, arXiv 2401.09149, and AMSP, arXiv 2311.00257,
with fp32 gradients); here with the padding that sizes which do not divide evenly cost.

Guarantees, each asserted in tests/parallel/hierarchy/test_volume.py or test_sharding.py:
- for sizes that divide evenly, a rank holds exactly the figures above;
- what a rank holds equals `held_bytes`, and what the collectives count equals `step_bytes`;
- wider optimizer states send no byte more over the inner axes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from comms.volume import all_reduce_bytes, gather_bytes
from parallel.hierarchy.widths import Widths, nested_piece

BLOCK = 256
"""Weights that share one scale in a quantized gather."""

_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class ParameterShape:
    """What the formulas need to know of a parameter."""

    shape: tuple[int, ...]
    dim: int = 0
    """The dim that is cut."""

    trainable: bool = True

    @property
    def rows(self) -> int:
        """Size of the dim that is cut."""
        return self.shape[self.dim]

    @property
    def row_elements(self) -> int:
        """Elements of one row."""
        return math.prod(size for dim, size in enumerate(self.shape) if dim != self.dim)

    def padded(self, parts: int) -> int:
        """Elements of the largest of `parts` parts."""
        return -(-self.rows // parts) * self.row_elements


@dataclass(frozen=True, kw_only=True)
class GroupShape:
    """Parameters that travel together: those of a block, or what is left of the model."""

    parameters: tuple[ParameterShape, ...]
    gathers_per_round: int = 2
    """Two where gathered weights are freed between forward and backward."""

    @property
    def trained(self) -> tuple[ParameterShape, ...]:
        """The parameters that have gradients."""
        return tuple(p for p in self.parameters if p.trainable)

    def slot_elements(self, widths: Widths) -> int:
        """Elements of one rank's optimizer shard, padding included."""
        return sum(p.padded(widths.optimizer) for p in self.trained)


def message_bytes(group: GroupShape, widths: Widths, *, param_bytes: int, quantized: bool) -> int:
    """What one rank contributes to the gather of new weights.

    Quantized: a byte per weight in whole blocks, and an fp32 scale per block.
    """
    if not quantized:
        return param_bytes * group.slot_elements(widths)
    return sum(blocks_of(p.padded(widths.optimizer)) for p in group.trained) * (BLOCK + _FP32)


def blocks_of(elements: int) -> int:
    """Quantization blocks of a parameter's slot; blocks do not reach over parameters."""
    return -(-elements // BLOCK)


def held_bytes(
    groups: Sequence[GroupShape], widths: Widths, place: Sequence[int], *, param_bytes: int
) -> dict[str, int]:
    """Bytes that the rank at `place` (its indices on weights, gradients, optimizer) holds from
    step to step: weights, gradients, masters, and the two fp32 moments of Adam."""
    every = [p for group in groups for p in group.parameters]
    slots = sum(group.slot_elements(widths) for group in groups)
    own = sum(
        nested_piece(p.rows, widths.cuts, place)[1] * p.row_elements for p in every if p.trainable
    )
    return {
        "weights": param_bytes * sum(p.padded(widths.weights) for p in every),
        "gradients": _FP32 * widths.cuts[2] * slots,
        "masters": _FP32 * slots,
        "moments": 2 * _FP32 * own,
    }


def working_bytes(
    groups: Sequence[GroupShape],
    widths: Widths,
    *,
    param_bytes: int,
    quantized: bool,
    transport_copies: bool,
) -> int:
    """Most bytes that a step takes for a while beyond `held_bytes`, without activations.

    The larger of what backward holds of a block beside what the block before it has on its way
    through the stages, and of two blocks in the gather of new weights. `transport_copies` adds the
    copies that gloo makes of what it reduces; NCCL makes none.
    """
    backward = max(_backward_bytes(group, widths, param_bytes) for group in groups)
    if transport_copies:
        backward += max(_sent_bytes(group, widths) for group in groups)
    publish = max(
        _publish_bytes(group, widths, param_bytes, quantized=quantized) for group in groups
    )
    return max(backward, publish)


def _sent_bytes(group: GroupShape, widths: Widths) -> int:
    """Gradients of one block on `gradients` and of one on `optimizer`."""
    _, middle, outer = widths.cuts
    slot = _FP32 * group.slot_elements(widths)
    return (middle * outer * slot if middle > 1 else 0) + (outer * slot if outer > 1 else 0)


def _backward_bytes(group: GroupShape, widths: Widths, param_bytes: int) -> int:
    inner, middle, outer = widths.cuts
    slot = _FP32 * group.slot_elements(widths)
    arriving, received = (middle * outer * slot, outer * slot) if middle > 1 else (0, 0)
    if inner == 1:
        # Gradients go one by one into this block's buffer; the block before is being received.
        largest = max((p.padded(1) for p in group.trained), default=0)
        return 2 * arriving + received + param_bytes * largest
    full = inner * sum(p.padded(inner) for p in group.parameters)
    grads = inner * sum(p.padded(inner) for p in group.trained)
    # FSDP2 has this block gathered and the next one on its way, and keeps the input of the last
    # reduce-scatter until the next one.
    fsdp = param_bytes * (2 * full + grads) + _FP32 * grads
    return fsdp + arriving + received


def _publish_bytes(group: GroupShape, widths: Widths, param_bytes: int, *, quantized: bool) -> int:
    _, middle, outer = widths.cuts
    message = message_bytes(group, widths, param_bytes=param_bytes, quantized=quantized)
    column = outer * message if outer > 1 else 0
    copied = message if quantized or param_bytes != _FP32 else 0
    gathered = middle * outer * message if middle > 1 else 0
    decoded = middle * outer * param_bytes * group.slot_elements(widths) if quantized else 0
    return 2 * (copied + column) + gathered + decoded


def step_bytes(
    groups: Sequence[GroupShape],
    widths: Widths,
    *,
    data_ranks: int,
    rounds: int,
    param_bytes: int,
    quantized: bool,
) -> dict[str, int]:
    """Bytes one rank sends in a step of `rounds` rounds, per axis and operation, zeros left out."""
    replicas = data_ranks // widths.optimizer
    inner, middle, outer = widths.cuts
    sent = dict.fromkeys(_OPERATIONS, 0)
    for group in groups:
        full = inner * sum(p.padded(inner) for p in group.parameters)
        grads = inner * sum(p.padded(inner) for p in group.trained)
        slot = _FP32 * group.slot_elements(widths)
        message = message_bytes(group, widths, param_bytes=param_bytes, quantized=quantized)
        sent["weights/all_gather"] += (
            rounds * group.gathers_per_round * gather_bytes(param_bytes * full, inner)
        )
        sent["weights/reduce_scatter"] += rounds * gather_bytes(_FP32 * grads, inner)
        sent["gradients/reduce_scatter"] += rounds * gather_bytes(middle * outer * slot, middle)
        sent["optimizer/reduce_scatter"] += gather_bytes(outer * slot, outer)
        sent["replica/all_reduce"] += all_reduce_bytes(slot, replicas)
        sent["optimizer/all_gather"] += gather_bytes(outer * message, outer)
        sent["gradients/all_gather"] += gather_bytes(middle * outer * message, middle)
    return {operation: count for operation, count in sent.items() if count}


_OPERATIONS = (
    "weights/all_gather",
    "weights/reduce_scatter",
    "gradients/reduce_scatter",
    "optimizer/reduce_scatter",
    "replica/all_reduce",
    "optimizer/all_gather",
    "gradients/all_gather",
)
