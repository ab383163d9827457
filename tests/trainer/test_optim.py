"""AdamW's state exists from the start, has names, and restores it."""

import pytest
import torch
from torch import nn

from trainer.config import OptimConfig
from trainer.optim import DeviceAdamW, parameter_groups


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))


def _backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    model(torch.randn(2, 4, generator=generator)).square().sum().backward()


def _train(model: nn.Module, optimizer: DeviceAdamW, steps: int, *, lr: float = 0.01) -> None:
    for step in range(steps):
        _backward(model, step)
        optimizer.update(lr, grad_scale=1.0, share=None)
        model.zero_grad()


def test_matrices_decay_and_vectors_do_not():
    groups = parameter_groups(_model().parameters(), OptimConfig(weight_decay=0.3))
    decays = {p.ndim: g["weight_decay"] for g in groups for p in g["params"]}
    assert decays == {2: 0.3, 1: 0.0}


def test_it_is_torchs_adamw_bitwise():
    ours, theirs = _model(), _model()
    config = OptimConfig(weight_decay=0.0)
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, betas=config.betas, weight_decay=0.0, fused=True
    )
    _train(ours, DeviceAdamW(ours, config), 5)
    for step in range(5):
        _backward(theirs, step)
        reference.step()
        reference.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [0.25, 0.3])
def test_a_gradient_scale_counts_like_scaled_gradients(scale):
    inside, before = _model(), _model()
    one, other = (DeviceAdamW(model, OptimConfig(eps=1e-3)) for model in (inside, before))
    for step in range(3):
        _backward(inside, step)
        _backward(before, step)
        for parameter in before.parameters():
            parameter.grad.mul_(scale)
        one.update(0.01, grad_scale=scale, share=None)
        other.update(0.01, grad_scale=1.0, share=None)
        inside.zero_grad()
        before.zero_grad()
    for a, b in zip(inside.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        if scale == 0.25:
            assert torch.equal(a, b)


def test_moments_are_live_and_restore_the_optimizer():
    whole, resumed = _model(), _model()
    first, second = DeviceAdamW(whole, OptimConfig()), DeviceAdamW(resumed, OptimConfig())
    names = {
        f"optim.{m}.{n}" for m in ("exp_avg", "exp_avg_sq") for n, _ in whole.named_parameters()
    }
    assert set(first.moments()) == names
    assert first.updates == 0
    _train(whole, first, 3)
    assert first.updates == 3
    resumed.load_state_dict(whole.state_dict())
    filled = second.moments_to_fill()
    for name, tensor in filled.items():
        tensor.copy_(first.moments()[name])
    second.restored(filled, 3)
    assert second.updates == 3
    _train(whole, first, 2, lr=0.5)
    _train(resumed, second, 2, lr=0.5)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_of_it_moves():
    model = _model()
    optimizer = DeviceAdamW(model, OptimConfig())
    _train(model, optimizer, 1)
    assert (optimizer.placement, optimizer.share, optimizer.movement) == ("device", None, None)
    optimizer.close()


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"optim\.lr must be positive, got 0"):
        OptimConfig(lr=0)
    with pytest.raises(ValueError, match=r"optim\.betas must lie in \[0, 1\)"):
        OptimConfig(betas=(0.9, 1.0))
