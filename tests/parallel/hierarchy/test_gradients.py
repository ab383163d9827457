"""Stages sum over all data ranks, keep only a part, and send late and little."""

import pytest
import torch

from comms.ledger import Ledger
from parallel.hierarchy.sharding import HierarchicalSharding
from parallel.hierarchy.widths import Widths
from tests.parallel.hierarchy.odd import Odd, every_width, odd_model, own_part, tokens
from tests.ranks import run_on_ranks

ROUNDS = 3


def _sums(ranks: int, skip: int | None = None) -> Odd:
    model = odd_model()
    for number in range(ROUNDS):
        for rank in range(ranks):
            model(tokens(rank, number, 0), skip if number < 2 else None).backward()
    return model


def _staged(rank: int, ranks: int) -> bool:
    # What sits out changes nothing about the order of stages: half of the widths each.
    for skip, some in ((None, slice(0, None, 2)), (1, slice(1, None, 2))):
        wanted = dict(_sums(ranks, skip).named_parameters())
        squares = sum(float(p.grad.square().sum()) for p in wanted.values() if p.requires_grad)
        for widths in list(every_width(ranks))[some]:
            model, ledger = odd_model(), Ledger()
            sharding = HierarchicalSharding(
                model, blocks=list(model.blocks), widths=widths, ledger=ledger
            )
            gradients = sharding.gradients
            kept_bytes = gradients.held_bytes
            for number in range(ROUNDS):
                gradients.start_round(last=number == ROUNDS - 1)
                early = {key.split("/")[0] for key in ledger.take()[0]}
                assert not early & {"optimizer", "replica"}
                model(tokens(rank, number, 0), skip if number < 2 else None).backward()
                assert all(p.grad is None for p in model.parameters())
            gradients.finish()
            assert gradients.held_bytes == kept_bytes
            total = gradients.squared_norm()
            torch.distributed.all_reduce(total)
            assert gradients.replicas == ranks // widths.optimizer
            assert float(total) == pytest.approx(squares, rel=1e-4)
            gradients.scale(0.5)
            for name, master in sharding.named_parameters():
                own = own_part(wanted[name].grad / 2, master)
                torch.testing.assert_close(master.grad.to_local(), own, rtol=1e-4, atol=1e-5)
            gradients.zero()
            assert all(master.grad is None for master in sharding.parameters())
            assert float(gradients.squared_norm()) == 0.0
    return True


@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_are_sums_over_all_ranks_also_of_a_block_that_sat_out(ranks):
    assert run_on_ranks(ranks, _staged, ranks) == [True] * ranks


def _uneven_use(rank: int) -> bool:
    """With whole weights on every rank, ranks may even use different blocks."""
    wanted = odd_model()
    for other in range(2):
        wanted(tokens(other, 0, 0), skip=other).backward()
    model = odd_model()
    sharding = HierarchicalSharding(
        model, blocks=list(model.blocks), widths=Widths(gradients=2, optimizer=2)
    )
    sharding.gradients.start_round(last=True)
    model(tokens(rank, 0, 0), skip=rank).backward()
    sharding.gradients.finish()
    for name, master in sharding.named_parameters():
        own = own_part(wanted.get_parameter(name).grad, master)
        torch.testing.assert_close(master.grad.to_local(), own, rtol=1e-4, atol=1e-5)
    return True


def _outside_a_round(rank: int) -> bool:
    for widths in (Widths(), Widths(weights=2, gradients=2, optimizer=2)):
        model = odd_model()
        sharding = HierarchicalSharding(model, blocks=list(model.blocks), widths=widths)
        sharding.gradients.start_round(last=True)
        model(tokens(rank, 0, 0)).backward()
        sharding.gradients.finish()
        with pytest.raises(RuntimeError, match="call start_round before each forward"):
            model(tokens(rank, 0, 0)).backward()
    return True


def _two_ranks(rank: int) -> bool:
    return _uneven_use(rank) and _outside_a_round(rank)


def test_ranks_may_differ_in_what_they_use_and_forgotten_rounds_are_refused():
    assert run_on_ranks(2, _two_ranks) == [True, True]
