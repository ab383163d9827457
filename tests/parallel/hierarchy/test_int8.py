"""Quantized weights are within the stated bound, block by block."""

import torch

from parallel.hierarchy.int8 import decode, encode
from parallel.hierarchy.shards import Slot
from parallel.hierarchy.volume import BLOCK, GroupShape, ParameterShape, message_bytes
from parallel.hierarchy.widths import Widths

SIZES = (300, 3, 256, 1000)


def _slots() -> list[Slot]:
    starts = [sum(SIZES[:i]) for i in range(len(SIZES))]
    return [
        Slot(name=f"p{i}", shape=ParameterShape(shape=(size,)), start=start, elements=size)
        for i, (size, start) in enumerate(zip(SIZES, starts, strict=True))
    ]


def _values() -> torch.Tensor:
    values = torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(0))
    values[300:303] *= 1e-6  # a small parameter beside large ones
    values[559:] *= 100.0
    values[303:559] = 0.0
    return values


def test_decoded_weights_are_within_half_a_level_of_their_block():
    values, slots = _values(), _slots()
    decoded = decode(encode(values, slots), slots, torch.float32)
    for slot in slots:
        mine = slice(slot.start, slot.start + slot.elements)
        pairs = zip(values[mine].split(BLOCK), decoded[mine].split(BLOCK), strict=True)
        for was, now in pairs:
            # Scale and product are rounded to fp32 on top of the rounding to 255 levels.
            bound = was.abs().max() * (1 / 254 + 1e-6)
            assert (was - now).abs().max() <= bound
    assert torch.equal(decoded[303:559], torch.zeros(256))


def test_a_lower_dtype_adds_its_own_rounding_alone():
    values, slots = _values(), _slots()
    message = encode(values, slots)
    exact = decode(message, slots, torch.float32)
    assert torch.equal(decode(message, slots, torch.bfloat16), exact.bfloat16())


def test_messages_are_as_long_as_the_formula_says_and_stack():
    values, slots = _values(), _slots()
    message = encode(values, slots)
    group = GroupShape(parameters=tuple(slot.shape for slot in slots))
    wanted = message_bytes(group, Widths(), param_bytes=4, quantized=True)
    assert message.numel() == wanted == (2 + 1 + 1 + 4) * (BLOCK + 4)
    stacked = torch.stack([message, encode(2 * values, slots)]).unsqueeze(0)
    decoded = decode(stacked, slots, torch.float32)
    assert torch.equal(decoded[0, 1], 2 * decoded[0, 0])


def test_what_is_not_finite_is_not_hidden():
    values, slots = _values(), _slots()
    values[10], values[600] = float("nan"), float("inf")
    decoded = decode(encode(values, slots), slots, torch.float32)
    assert decoded[:256].isnan().all()
    assert decoded[559 : 559 + 256].isnan().all()
    assert decoded[256:559].isfinite().all()
    assert decoded[559 + 256 :].isfinite().all()
