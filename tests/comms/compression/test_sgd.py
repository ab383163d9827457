"""CorrectedSGD with corrected gradients is SGD with momentum."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from comms.compression.sgd import CorrectedSGD
from tests.ranks import run_on_ranks


def _weights() -> nn.Parameter:
    return nn.Parameter(torch.randn(300, generator=torch.Generator().manual_seed(9)))


def _gradient(weights: torch.Tensor, rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return weights.detach() * 0.1 + torch.randn(300, generator=generator)


def _body(rank: int) -> dict[bool, torch.Tensor]:
    found = {}
    for nesterov in (False, True):
        config = CompressionConfig(
            method="dgc",
            momentum=0.9,
            nesterov=nesterov,
            ratio=0.999,
            values="fp32",
            dense_below=0,
            mask_momentum=False,
        )
        exchange = Exchange(config, group=dist.group.WORLD, background=False)
        weights = _weights()
        optimizer = CorrectedSGD(
            [weights], lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=nesterov
        )
        for step in range(6):
            weights.grad = _gradient(weights, rank, step)
            exchange.start("weights", weights.grad).wait()
            optimizer.step()
        found[nesterov] = weights.detach()
    return found


def test_momentum_is_applied_once_to_gradients_and_to_weight_decay():
    found = run_on_ranks(2, _body)[0]
    for nesterov in (False, True):
        weights = _weights()
        optimizer = torch.optim.SGD(
            [weights], lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=nesterov
        )
        for step in range(6):
            weights.grad = _gradient(weights, 0, step) + _gradient(weights, 1, step)
            optimizer.step()
        torch.testing.assert_close(found[nesterov], weights.detach(), rtol=1e-3, atol=1e-3)


def test_without_weight_decay_it_is_plain_sgd():
    ours, theirs = _weights(), _weights()
    ours.grad, theirs.grad = torch.ones(300), torch.ones(300)
    CorrectedSGD([ours], lr=0.1, momentum=0.9).step()
    torch.optim.SGD([theirs], lr=0.1).step()
    assert torch.equal(ours, theirs)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match=r"momentum=1\.5"):
        CorrectedSGD([_weights()], lr=0.1, momentum=1.5)
    with pytest.raises(ValueError, match="must not be negative"):
        CorrectedSGD([_weights()], lr=-0.1, momentum=0.5)
