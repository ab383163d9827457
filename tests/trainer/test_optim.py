"""AdamW's state exists from the start and has names."""

import pytest
import torch
from torch import nn

from trainer.config import OptimConfig
from trainer.optim import build_adamw, moments, set_learning_rate, set_updates_done, updates_done


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))


def _train(model: nn.Module, optimizer: torch.optim.AdamW, steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(2, 4, generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_matrices_decay_and_vectors_do_not():
    optimizer = build_adamw(_model(), OptimConfig(weight_decay=0.3))
    decays = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {2: 0.3, 1: 0.0}


def test_it_is_torchs_adamw_bitwise():
    ours, theirs = _model(), _model()
    config = OptimConfig(lr=0.01, weight_decay=0.0)
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, betas=config.betas, weight_decay=0.0, fused=True
    )
    _train(ours, build_adamw(ours, config), 5)
    _train(theirs, reference, 5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_moments_are_live_and_restore_the_optimizer():
    whole, resumed = _model(), _model()
    first, second = build_adamw(whole, OptimConfig()), build_adamw(resumed, OptimConfig())
    names = {
        f"optim.{m}.{n}" for m in ("exp_avg", "exp_avg_sq") for n, _ in whole.named_parameters()
    }
    assert set(moments(whole, first)) == names
    assert updates_done(first) == 0
    _train(whole, first, 3)
    assert updates_done(first) == 3
    resumed.load_state_dict(whole.state_dict())
    for name, tensor in moments(resumed, second).items():
        tensor.copy_(moments(whole, first)[name])
    set_updates_done(second, 3)
    set_learning_rate(first, 0.5)
    set_learning_rate(second, 0.5)
    _train(whole, first, 2)
    _train(resumed, second, 2)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"optim\.lr must be positive, got 0"):
        OptimConfig(lr=0)
    with pytest.raises(ValueError, match=r"optim\.betas must lie in \[0, 1\)"):
        OptimConfig(betas=(0.9, 1.0))
