"""Any layout gives the gradients of one rank, and counts the bytes of the formula."""

import pytest
import torch

from comms.ledger import Ledger
from parallel.apply import ModelParts, parallelize
from parallel.config import ParallelConfig
from parallel.layout import Layout
from parallel.mesh import build_mesh
from tests.parallel.stack import Stack, rows
from tests.ranks import run_on_ranks


def _step(rank: int, layout: Layout, rounds: int, config: ParallelConfig) -> dict:
    model, ledger = Stack(), Ledger()
    meshes = build_mesh(layout, "cpu")
    spread = parallelize(
        model,
        parts=ModelParts(blocks=list(model.blocks)),
        meshes=meshes,
        config=config,
        param_dtype=torch.float32,
        compile_blocks=False,
        ledger=ledger,
    )
    gradients = spread.gradients()
    for number in range(rounds):
        gradients.start_round(last=number == rounds - 1)
        model(rows(rank, number)).backward()
    gradients.finish()
    squares = float(gradients.squared_norm())
    full = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        grad = parameter.grad
        full[name] = grad.full_tensor() if layout.shard > 1 else grad.clone()
    sent, waited_s = ledger.take()
    gradients.zero()
    return {"grads": full, "squares": squares, "sent": sent, "waited_s": waited_s}


@pytest.mark.parametrize(
    ("layout", "rounds"),
    [
        (Layout(replica=2), 2),
        (Layout(shard=2), 1),
        (Layout(shard=3), 2),
        (Layout(replica=2, shard=2), 3),
        (Layout(shard=4), 1),
    ],
    ids=str,
)
def test_gradients_are_those_of_one_rank(layout, rounds):
    reference = Stack()
    for rank in range(layout.world_size):
        for number in range(rounds):
            reference(rows(rank, number)).backward()
    wanted = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    results = run_on_ranks(layout.world_size, _step, layout, rounds, ParallelConfig())
    for result in results:
        for name, grad in result["grads"].items():
            torch.testing.assert_close(grad, wanted[name], rtol=1e-5, atol=1e-5)
    norm = sum(r["squares"] for r in results)
    assert norm == pytest.approx(sum(float(g.square().sum()) for g in wanted.values()), 1e-4)


def test_sharded_bytes_are_those_of_the_formula():
    results = run_on_ranks(
        4, _step, Layout(replica=2, shard=2), 2, ParallelConfig(reshard_after_forward=True)
    )
    # FSDP2 pads every tensor's rows to a multiple of the ranks: 5 rows to 6, 3 to 4.
    block, head = 4 * (6 * 5 + 6), 4 * (4 * 5)
    gathered = 2 * 3 * block + head  # blocks again in backward, the root only once
    scattered = 3 * block + head
    # The last block is not freed between its forward and its backward.
    for result in results:
        sent = result["sent"]
        assert sent["shard/reduce_scatter"] == 2 * scattered // 2
        assert sent["replica/all_reduce"] == 2 * (scattered // 2) * 1 // 2
        assert sent["shard/all_gather"] in (2 * gathered // 2, 2 * (gathered - block) // 2)
        assert result["waited_s"] > 0
