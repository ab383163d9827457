"""The guarantees of trainer/sgd.py, one by one."""

import pytest
import torch
from torch import nn

from tests.ranks import run_on_ranks
from trainer.config import OptimConfig
from trainer.sgd import DeviceSGD

CONFIG = OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.01)
STEPS = 5


def _model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 4)


def _gradient(step: int, parameter: nn.Parameter) -> torch.Tensor:
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))


def _reference(config: OptimConfig, scale: float) -> nn.Linear:
    model = _model()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.decay,
        nesterov=config.nesterov,
    )
    for step in range(STEPS):
        for parameter in model.parameters():
            parameter.grad = _gradient(step, parameter) * scale
        optimizer.step()
    return model


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_is_torchs_sgd_with_a_gradient_scale(nesterov):
    config = OptimConfig(name="sgd", lr=0.1, nesterov=nesterov, weight_decay=0.01)
    model = _model()
    optimizer = DeviceSGD(model, config, momentum_applied=False)
    for step in range(STEPS):
        for parameter in model.parameters():
            parameter.grad = _gradient(step, parameter)
        optimizer.update(0.1, grad_scale=0.5, share=None)
    assert optimizer.updates == STEPS
    for mine, theirs in zip(model.parameters(), _reference(config, 0.5).parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_momentum_that_gradients_carry_is_not_applied_again():
    model = _model()
    optimizer = DeviceSGD(model, CONFIG, momentum_applied=True)
    carried = {p: torch.zeros_like(p) for p in model.parameters()}
    for step in range(STEPS):
        for parameter, velocity in carried.items():
            velocity.mul_(0.9).add_(_gradient(step, parameter))
            parameter.grad = velocity.clone()
        optimizer.update(0.1, grad_scale=1.0, share=None)
    for mine, theirs in zip(model.parameters(), _reference(CONFIG, 1.0).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum_applied", [False, True])
def test_momentum_and_number_of_updates_restore_it(momentum_applied):
    def step(optimizer: DeviceSGD, model: nn.Linear, number: int) -> None:
        for parameter in model.parameters():
            parameter.grad = _gradient(number, parameter)
        optimizer.update(0.1, grad_scale=1.0, share=None)

    one, other = _model(), _model()
    before = DeviceSGD(one, CONFIG, momentum_applied=momentum_applied)
    after = DeviceSGD(other, CONFIG, momentum_applied=momentum_applied)
    step(before, one, 0)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters(), one.parameters(), strict=True):
            mine.copy_(theirs)
    after.restored(before.moments(), before.updates)
    assert set(after.moments()) == {"optim.momentum.weight", "optim.momentum.bias"}
    step(before, one, 1)
    step(after, other, 1)
    assert after.updates == 2
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def _sharded(rank: int) -> list[torch.Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    found = []
    for momentum_applied in (False, True):
        model = _model()
        for name, parameter in list(model.named_parameters()):
            spread = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
            model.register_parameter(name, nn.Parameter(spread))
        optimizer = DeviceSGD(model, CONFIG, momentum_applied=momentum_applied)
        for parameter in model.parameters():
            whole = _gradient(0, parameter)
            parameter.grad = distribute_tensor(whole, mesh, [Shard(0)])
        optimizer.update(0.1, grad_scale=0.5, share=None)
        found += [p.full_tensor().detach() for p in model.parameters()]
    return found


def test_sharded_parameters_are_updated_alike():
    model = _model()
    optimizer = DeviceSGD(model, CONFIG, momentum_applied=False)
    for parameter in model.parameters():
        parameter.grad = _gradient(0, parameter)
    optimizer.update(0.1, grad_scale=0.5, share=None)
    wanted = [parameter.detach() for parameter in model.parameters()] * 2
    for result in run_on_ranks(2, _sharded):
        for mine, theirs in zip(result, wanted, strict=True):
            torch.testing.assert_close(mine, theirs)
