"""Hosts are known, with their links, before anything is spread over them; ranks play hosts."""

from dataclasses import replace

import torch
from torch import nn

from comms.config import RankEnvironment
from comms.ledger import Ledger
from comms.links.map import map_of
from parallel.apply import ModelParts, parallelize
from parallel.config import ParallelConfig
from parallel.layout import Layout
from parallel.mesh import build_mesh
from tests.ranks import run_on_ranks
from trainer.host_map import map_hosts, near_first, sharding_lines

CLOSE = map_of(
    [[1e-5] * 4] * 4, [[1e9 if (a - b) % 2 == 0 else 1e7 for b in range(4)] for a in range(4)]
)


def _rows(rank: int) -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def _spread(rank: int) -> dict:
    here = RankEnvironment.on_this_machine(rank, 4, 0)
    alone = map_hosts(here)
    hosts = map_hosts(replace(here, host=f"host{rank}", local_rank=0), lambda group: CLOSE)
    layout = Layout(shard=4, shard_weights=2, shard_gradients=2)
    meshes = build_mesh(layout, "cpu", sharding_lines(layout, hosts))
    model, ledger = _model(), Ledger()
    spread = parallelize(
        model,
        parts=ModelParts(blocks=[model[0]]),
        meshes=meshes,
        config=ParallelConfig(),
        param_dtype=torch.float32,
        compile_blocks=False,
        ledger=ledger,
    )
    gradients = spread.gradients()
    gradients.start_round(last=True)
    model(_rows(rank)).square().sum().backward()
    gradients.finish()
    grads = {name: p.grad.full_tensor() for name, p in spread.named_parameters()}
    weights = model[0].weight
    return {
        "alone": alone,
        "hosts": hosts,
        "lines": meshes.lines,
        "near": weights.device_mesh.mesh.tolist(),
        "grads": grads,
    }


def test_weights_are_shared_out_among_close_hosts_and_gradients_are_those_of_one_process():
    found = run_on_ranks(4, _spread)
    reference = _model()
    for rank in range(4):
        reference(_rows(rank)).square().sum().backward()
    for rank, own in enumerate(found):
        assert own["alone"] is None
        assert own["hosts"] == found[0]["hosts"]
        assert own["hosts"].host_of == own["hosts"].firsts == (0, 1, 2, 3)
        assert own["lines"] == ((0, 2, 1, 3),)
        assert sorted(own["near"]) == [rank % 2, rank % 2 + 2]
        for name, parameter in reference.named_parameters():
            torch.testing.assert_close(own["grads"][name], parameter.grad)


def test_lines_stay_as_ranks_are_counted_where_close_hosts_are_neighbours():
    hosts = (0, 0, 1, 1, 2, 2)
    assert near_first([range(6)], hosts, ((0, 1, 2),)) == (tuple(range(6)),)
    assert near_first([range(6)], hosts, ((0,), (1, 2))) == (tuple(range(6)),)
    assert near_first([range(6)], hosts, ((0, 2), (1,))) == ((0, 1, 4, 5, 2, 3),)
    assert near_first([(0, 1), (2, 3)], (0, 1, 2, 3), ((0, 2), (1, 3))) == ((0, 1), (2, 3))
    assert sharding_lines(Layout(island=2, shard=2), None) == ((0, 1), (2, 3))
