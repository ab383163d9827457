"""The guarantees of comms/compression/dgc.py, one by one."""

import torch
import torch.distributed as dist

from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from tests.ranks import run_on_ranks

NUMEL = 5000


def _gradient(rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(NUMEL, generator=generator)


def _exchange(**settings: object) -> Exchange:
    common = {"method": "dgc", "momentum": 0.9, "ratio": 0.02, "dense_below": 0}
    config = CompressionConfig(**(common | settings))
    return Exchange(config, group=dist.group.WORLD, background=False)


def _books(rank: int) -> dict[str, torch.Tensor]:
    """What was sent, kept and accumulated over some steps, of all ranks, without masking."""
    exchange = _exchange(mask_momentum=False, values="fp16")
    sent, velocity, given = torch.zeros(NUMEL), torch.zeros(NUMEL), torch.zeros(NUMEL)
    for step in range(8):
        flat = _gradient(rank, step)
        velocity = 0.9 * velocity + flat
        given += velocity
        exchange.start("x", flat).wait()
        sent += flat
    exchange.commit()
    kept = exchange.state_dict()["x/residual"].clone()
    for tensor in (kept, given):
        dist.all_reduce(tensor)
    return {"sent": sent, "kept": kept, "given": given}


def _masking(rank: int) -> dict[str, bool]:
    exchange = _exchange()
    flat = _gradient(rank, 0)
    exchange.start("x", flat).wait()
    exchange.commit()
    state = exchange.state_dict()
    taken = state["x/velocity"] == 0
    return {
        "as many as the ratio says": int(taken.sum()) == 100,
        "unsent is what rounding left": float(state["x/residual"][taken].abs().max()) < 1e-2,
        "the others keep all": torch.equal(state["x/residual"][~taken], _gradient(rank, 0)[~taken]),
        "those sent were the largest": bool(
            _gradient(rank, 0)[taken].abs().min() >= _gradient(rank, 0)[~taken].abs().max()
        ),
    }


def _everything(rank: int) -> list[torch.Tensor]:
    exchange = _exchange(ratio=1.0)
    found = []
    for step in range(4):
        flat = _gradient(rank, step)
        exchange.start("x", flat).wait()
        found.append(flat)
    return found


def _body(rank: int) -> tuple[dict, dict, list]:
    return _books(rank), _masking(rank), _everything(rank)


def test_nothing_is_lost_momentum_is_masked_and_all_sent_is_sgd():
    for books, masking, everything in run_on_ranks(2, _body):
        torch.testing.assert_close(
            books["sent"] + books["kept"], books["given"], rtol=1e-4, atol=1e-4
        )
        assert books["sent"].norm() > 0
        assert all(masking.values()), masking
        velocity = torch.zeros(NUMEL)
        for step, got in enumerate(everything):
            velocity = 0.9 * velocity + _gradient(0, step) + _gradient(1, step)
            torch.testing.assert_close(got, velocity, rtol=1e-5, atol=1e-5)
