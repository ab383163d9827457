"""What `trainer/elastic.py` guarantees, on a decoder under FSDP2 with experts over ranks."""

from dataclasses import replace

import torch
import torch.distributed as dist

from comms.ledger import Ledger
from parallel.config import ParallelConfig
from parallel.experts.placement import Placement
from parallel.layout import Layout
from parallel.mesh import build_mesh
from tests.jobs import tiny_job
from tests.ranks import run_on_ranks
from tests.trainer.model.batches import make_batch
from trainer.elastic import ElasticExperts
from trainer.model.config import Architecture, MoeConfig
from trainer.model.init import init_weights
from trainer.model.packing import Sharing
from trainer.optim import DeviceAdamW
from trainer.stages import spread_decoder

ARCHITECTURE = Architecture(
    vocab_size=96,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    intermediate_size=48,
    moe=MoeConfig(num_experts=6, top_k=2, expert_intermediate_size=16, pyramid=(4, 6)),
    init_std=0.1,
)
NAMES = ("layers.0.mlp.experts", "layers.1.mlp.experts")
STEPS, EP = 5, 2


def open_model(folder, shard):
    ledger = Ledger()
    job = replace(tiny_job(folder), parallel=ParallelConfig(replica=1, shard=shard, ep=EP))
    layout = Layout(replica=1, shard=shard, ep=EP)
    spreading = spread_decoder(
        job, ARCHITECTURE, build_mesh(layout, "cpu"), torch.float32, ledger, ranks_per_host=shard
    )
    spreading.allocate(torch.device("cpu"))
    init_weights(spreading.weights, 0)
    gradients, rounds = spreading.start()
    optimizer = DeviceAdamW(spreading.weights, job.optim)
    elastic = ElasticExperts(
        spreading.weights, optimizer, expert_groups=shard // EP, loan_rows=0.0, min_gain=0.01
    )
    return gradients, rounds, optimizer, elastic, ledger


def train(rank, folder, shard, change):
    """Losses of some steps; `change(elastic, step)` comes after each."""
    gradients, rounds, optimizer, elastic, ledger = open_model(folder, shard)
    losses = []
    for step in range(STEPS):
        batch = make_batch([[20, 11], [7]], 96, seed=100 * step + rank)
        parts = rounds.train([batch], [Sharing()], divisor=60.0)
        gradients.finish()
        optimizer.update(1e-2, grad_scale=1.0, share=None)
        gradients.zero()
        load = parts.expert_load.clone()
        dist.all_reduce(load)
        elastic.observe(load)
        change(elastic, step)
        losses.append((parts.loss_sum + parts.aux_sum).item())
    return losses, ledger.take()[0], [elastic.placement(name) for name in NAMES]


def stay(elastic, step):
    pass


def move(elastic, step):
    if step == 1:
        assert elastic.place({NAMES[1]: Placement((4, 0, 5, 1, 3, 2), EP)}) == 4
    if step == 3:
        back = {NAMES[1]: Placement.initial(6, EP), NAMES[0]: Placement((2, 1, 0, 3), EP)}
        assert elastic.place(back) == 6


def lend(elastic, step):
    if step == 0:
        loans = ((0, 1), (4, 0))
        assert elastic.place({NAMES[1]: Placement(tuple(range(6)), EP, loans)}) == 0


def follow(elastic, step):
    if step == 2:
        elastic.rearrange()
        assert elastic.rearrange() == 0, "nothing was observed since"


def all_runs(rank, folder, shard):
    return [train(rank, folder, shard, change) for change in (stay, move, lend, follow)]


def test_losses_go_on_as_if_nothing_had_moved(tmp_path):
    for still, moved, lent, chosen in run_on_ranks(4, all_runs, tmp_path, 4):
        assert still[0] == moved[0]
        assert len(set(still[0])) == STEPS
        torch.testing.assert_close(lent[0], still[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(chosen[0], still[0], rtol=1e-5, atol=1e-5)
        assert chosen[2] != still[2]
        # Two ranks share each expert besides, and each sends half: weights and two moments.
        half_bytes = 3 * 4 * 3 * 32 * 16 // 2
        assert moved[1]["ep/move_experts"] % half_bytes == 0
        assert 3 <= moved[1]["ep/move_experts"] // half_bytes <= 7
        assert lent[1]["ep/lend_experts"] > 0
        assert "ep/move_experts" not in lent[1]
