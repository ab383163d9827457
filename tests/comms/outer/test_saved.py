"""The guarantees of comms/outer/saved.py, one by one."""

import pytest
import torch
from torch import nn

from comms.outer.flight import Landing
from comms.outer.fragment import Fragment, OuterState
from comms.outer.saved import read_state, write_state


def _fragments(seed: int) -> list[Fragment]:
    torch.manual_seed(seed)
    return [Fragment({f"{n}.w": nn.Parameter(torch.randn(4, n + 1))}) for n in range(3)]


def _flight(fragment: Fragment) -> Landing:
    state = OuterState(torch.randn(fragment.numel), torch.randn(fragment.numel))
    return Landing(state, finite=(True, False, True), place=2, leaving=(1,))


def test_what_was_written_is_read_back_bitwise_with_what_is_under_way():
    fragments = _fragments(0)
    landing = _flight(fragments[1])
    written = write_state(fragments, (7, 3, 2), (1, landing))
    others = _fragments(1)
    counts, flight = read_state(others, written)
    assert counts == (7, 3, 2)
    assert flight is not None
    number, found = flight
    assert (number, found.finite, found.place, found.leaving) == (1, landing.finite, 2, (1,))
    assert found.mine
    assert torch.equal(found.state.momentum, landing.state.momentum)
    assert torch.equal(found.state.parameters, landing.state.parameters)
    for one, other in zip(fragments, others, strict=True):
        assert torch.equal(one.state.parameters, other.state.parameters)
        assert torch.equal(one.state.momentum, other.state.momentum)
    assert read_state(others, write_state(fragments, (7, 3, 3), None))[1] is None


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "flight"])
def test_tensors_that_do_not_fit_are_named_and_nothing_changes(change):
    fragments = _fragments(0)
    state = write_state(fragments, (1, 1, 1), (1, _flight(fragments[1])))
    if change == "missing":
        del state["2.w/momentum"]
    elif change == "unknown":
        state["2.w/other"] = torch.zeros(1)
    elif change == "shape":
        state["2.w/global"] = torch.zeros(2, 2)
    else:
        del state["1.w/next_global"]
    others = _fragments(1)
    before = [fragment.state.parameters.clone() for fragment in others]
    with pytest.raises(ValueError, match=r"[12]\.w/"):
        read_state(others, state)
    assert all(torch.equal(f.state.parameters, b) for f, b in zip(others, before, strict=True))
