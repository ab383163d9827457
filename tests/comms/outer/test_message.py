"""The guarantees of comms/outer/message.py, one by one."""

import pytest
import torch

from comms.outer.message import encode, mean, message_bytes

WIRES = ["e3m0", "int8", "fp32"]
NUMEL = 700


def _gradient(seed: int) -> torch.Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


def _message(gradient, wire, **changes):
    given = {"weight": 1.0, "finite": True, "leaving": False} | changes
    return encode(gradient, wire, **given)


@pytest.mark.parametrize("wire", WIRES)
def test_the_length_depends_on_the_number_of_entries_alone(wire):
    messages = [
        _message(_gradient(0), wire),
        _message(torch.zeros(NUMEL), wire, leaving=True),
        _message(torch.full((NUMEL,), torch.nan), wire, finite=False),
    ]
    assert [m.numel() for m in messages] == [message_bytes(NUMEL, wire)] * 3


@pytest.mark.parametrize("wire", WIRES)
def test_what_is_not_finite_changes_no_mean(wire):
    bad = _message(torch.full((NUMEL,), torch.nan), wire, finite=False)
    good = _message(_gradient(1), wire)
    both, alone = mean([bad, good], NUMEL, wire), mean([good], NUMEL, wire)
    assert both.finite == (False, True)
    assert torch.equal(both.value, alone.value)
    assert mean([bad, bad], NUMEL, wire).value is None


@pytest.mark.parametrize(("wire", "bound"), [("e3m0", 0.4), ("int8", 0.01), ("fp32", 1e-6)])
def test_means_are_weighted_and_of_equal_bits_for_equal_messages(wire, bound):
    first, second = _gradient(1), _gradient(2)
    messages = [_message(first, wire, weight=3.0), _message(second, wire)]
    # As they lie after a gather: one behind the other, on no boundary.
    rows = torch.cat([torch.zeros(1, dtype=torch.uint8), *messages])[1:].split(len(messages[0]))
    found = mean(messages, NUMEL, wire).value
    assert torch.equal(found, mean(rows, NUMEL, wire).value)
    expected = 0.75 * first + 0.25 * second
    assert float((found - expected).norm() / expected.norm()) < bound


def test_islands_that_leave_are_named():
    messages = [_message(_gradient(n), "int8", leaving=n == 1) for n in range(3)]
    assert mean(messages, NUMEL, "int8").leaving == (1,)
