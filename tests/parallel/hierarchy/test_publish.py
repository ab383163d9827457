"""New weights reach every rank, whole or in int8 blocks within the bound, in the counted bytes."""

import torch
from torch.distributed.tensor import DTensor

from comms.ledger import Ledger
from parallel.hierarchy.sharding import HierarchicalSharding
from parallel.hierarchy.volume import step_bytes
from parallel.hierarchy.widths import Widths
from tests.parallel.hierarchy.odd import odd_model, tokens
from tests.ranks import run_on_ranks

WIDTHS = (
    Widths(weights=1, gradients=2, optimizer=4),
    Widths(weights=2, gradients=2, optimizer=4),
    Widths(weights=2, gradients=4, optimizer=4),
    Widths(weights=4, gradients=4, optimizer=4),
    Widths(weights=1, gradients=1, optimizer=2),
)


def _whole(tensor):
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def _published(rank: int, quantized: bool) -> bool:
    for widths in WIDTHS:
        for dtype in (torch.float32, torch.bfloat16):
            model, ledger = odd_model(), Ledger()
            sharding = HierarchicalSharding(
                model,
                blocks=list(model.blocks),
                widths=widths,
                param_dtype=dtype,
                quantized_gather=quantized,
                ledger=ledger,
            )
            with torch.no_grad():
                for master in sharding.parameters():
                    master.to_local().mul_(1.37)
            sharding.publish()
            sent, _ = ledger.take()
            wanted = step_bytes(
                [group.shape for group in sharding.groups],
                widths,
                data_ranks=4,
                rounds=0,
                param_bytes=dtype.itemsize,
                quantized=quantized,
            )
            assert sent == {
                name: count for name, count in wanted.items() if name.endswith("all_gather")
            }
            exact = not quantized or widths.weights == 4
            for name, master in sharding.named_parameters():
                whole, weight = _whole(master), _whole(model.get_parameter(name))
                assert weight.dtype == dtype
                if exact:
                    assert torch.equal(weight, whole.to(dtype))
                else:
                    half_level = whole.abs().max() * (1 / 254 + 1e-6)
                    rounding = 0.0 if dtype == torch.float32 else whole.abs().max() / 256
                    assert (weight.float() - whole).abs().max() <= half_level + rounding
    return True


def _losses(rank: int, quantized: bool) -> list[float]:
    model = odd_model()
    sharding = HierarchicalSharding(
        model,
        blocks=list(model.blocks),
        widths=Widths(weights=1, gradients=2, optimizer=4),
        quantized_gather=quantized,
    )
    optimizer = torch.optim.AdamW(sharding.parameters(), lr=1e-2, fused=True)
    losses = []
    for _ in range(30):
        sharding.gradients.start_round(last=True)
        loss = model(tokens(rank, 0, 0))
        loss.backward()
        sharding.gradients.finish()
        torch.distributed.all_reduce(loss := loss.detach())
        losses.append(float(loss))
        optimizer.step()
        sharding.publish()
        sharding.gradients.zero()
    return losses


def _four_ranks(rank: int) -> list[list[float]]:
    assert _published(rank, quantized=False)
    assert _published(rank, quantized=True)
    return [_losses(rank, False), _losses(rank, True)]


def test_weights_are_published_exactly_or_within_the_bound_and_training_converges_alike():
    for exact, quantized in run_on_ranks(4, _four_ranks):
        assert exact[-1] < 0.1 * exact[0]
        # Masters stay exact, so that rounding of weights does not add up over the steps.
        assert abs(quantized[-1] - exact[-1]) < 0.05 * exact[0]
