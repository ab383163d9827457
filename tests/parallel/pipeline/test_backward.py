import pytest
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from parallel.pipeline.backward import backward_input


class Square(torch.autograd.Function):
    """A node that makes gradients of input and weight at once."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return 2 * grad * x * weight, (grad * x * x).sum(0)


class Mixed(nn.Module):
    """Linear, norm, residual, a custom function, a weight used twice, and one beside the input."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.RMSNorm(6)
        self.shared = nn.Linear(6, 6, bias=False)
        self.scale = nn.Parameter(torch.ones(6))
        self.beside = nn.Parameter(torch.ones(6))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        h = x + self.shared(torch.relu(self.first(self.norm(x))))
        h = Square.apply(self.shared(h), self.scale) + h
        return h + self.beside.square(), self.beside.pow(3).sum() + h.float().logsumexp(1).sum()


def run(split):
    torch.manual_seed(0)
    module = Mixed()
    x = torch.randn(5, 6, requires_grad=True)
    events = []
    for name, parameter in module.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: events.append(name))
    hidden, loss = module(x)
    grad = torch.randn(5, 6)
    roots = [(get_gradient_edge(hidden), grad), (get_gradient_edge(loss), torch.tensor(0.5))]
    if not split:
        torch.autograd.backward([hidden, loss], [grad, torch.tensor(0.5)])
        return x.grad, module, events, []
    given, deferred = backward_input(roots, x)
    before = [name for name, p in module.named_parameters() if p.grad is not None]
    deferred.run()
    return given, module, events, before


def test_both_halves_give_the_gradients_of_one_backward():
    whole_x, whole, _, _ = run(split=False)
    split_x, split, _, _ = run(split=True)
    assert torch.equal(whole_x, split_x)
    for (name, a), b in zip(whole.named_parameters(), split.parameters(), strict=True):
        if a.grad is None:
            assert b.grad is None
        elif name == "shared.weight":  # its two uses are added in another order
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(a.grad, b.grad), name


def test_the_inputs_half_touches_no_weight_and_the_weights_half_runs_their_hooks_once():
    _, module, events, before = run(split=True)
    assert before == []
    wanted = [name for name, _ in module.named_parameters() if name != "unused"]
    assert sorted(events) == sorted(wanted)


def test_gradients_add_up():
    _, module, _, _ = run(split=True)
    once = module.first.weight.grad.clone()
    hidden, loss = module(x := torch.ones(5, 6, requires_grad=True))
    _, deferred = backward_input([(get_gradient_edge(loss), torch.tensor(1.0))], x)
    deferred.run()
    assert not torch.equal(module.first.weight.grad, once)
    assert hidden.shape == (5, 6)


def test_an_input_that_no_output_depends_on_has_no_gradient():
    weight = nn.Parameter(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    loss = weight.square().sum()
    gradient, deferred = backward_input([(get_gradient_edge(loss), torch.tensor(1.0))], x)
    assert gradient is None
    assert weight.grad is None
    deferred.run()
    assert weight.grad.tolist() == pytest.approx([2.0, 2.0, 2.0])
