"""The guarantees of comms/outer/fragment.py, one by one."""

import pytest
import torch
from torch import nn

from comms.outer.fragment import Fragment, OuterState, outer_step


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_outer_step_is_bitwise_that_of_sgd(momentum):
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(50))
    sgd = torch.optim.SGD([parameter], lr=0.7, momentum=momentum, nesterov=momentum > 0)
    state = OuterState(parameter.detach().clone(), torch.zeros(50))
    for _ in range(5):
        gradient = torch.randn(50)
        parameter.grad = gradient.clone()
        sgd.step()
        before = state.parameters.clone()
        news = outer_step(state, gradient, lr=0.7, momentum=momentum)
        assert torch.equal(state.parameters, before)
        assert torch.equal(news.parameters, parameter.detach())
        state = news


def _fragment() -> tuple[Fragment, nn.Linear]:
    layer = nn.Linear(3, 2)
    return Fragment(dict(layer.named_parameters())), layer


def test_the_global_state_changes_in_commit_and_restore_alone():
    fragment, layer = _fragment()
    first = fragment.state.parameters.clone()
    nn.init.zeros_(layer.weight)
    gradient = fragment.gradient(fragment.state)
    assert torch.equal(gradient[:6], first[:6])
    assert torch.equal(gradient[6:], torch.zeros(2))
    fragment.merge(first + 1, 0.25)
    assert torch.equal(fragment.state.parameters, first)
    fragment.commit(OuterState(first + 1, first + 2))
    assert torch.equal(fragment.state.parameters, first + 1)
    given = OuterState(first + 3, first + 4)
    fragment.restore(given)
    given.parameters.zero_()
    assert torch.equal(fragment.state.parameters, first + 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_keeps_a_share_of_the_parameters(dtype):
    layer = nn.Linear(3, 2).to(dtype)
    fragment = Fragment(dict(layer.named_parameters()))
    assert fragment.state.parameters.dtype == torch.float32
    before = layer.weight.detach().clone()
    fragment.merge(torch.full((8,), 2.0), 0.25)
    expected = (0.25 * before.float() + 0.75 * 2.0).to(dtype)
    assert torch.allclose(layer.weight.detach(), expected, rtol=2**-7)
    nn.init.constant_(layer.bias, torch.nan)
    fragment.merge(torch.full((8,), 2.0), 0.0)
    assert torch.equal(layer.bias.detach(), torch.full((2,), 2.0, dtype=dtype))
    assert set(fragment.named(fragment.state.momentum)) == {"weight", "bias"}
    assert fragment.named(fragment.state.momentum)["weight"].shape == (2, 3)
