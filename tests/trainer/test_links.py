"""The links between hosts are measured, recorded, and followed; ranks here pretend to be hosts."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.ledger import Ledger
from comms.links.probe import measure_links
from parallel.layout import Layout
from parallel.pool import open_pool
from parallel.sequence.stretches import AttentionScheme
from tests.ranks import run_on_ranks
from trainer.host_map import map_hosts
from trainer.links import Followers, open_links
from trainer.planner.plan import StepPlan
from trainer.run_folder import RunFolder, read_lines

QUICK = partial(measure_links, budget_s=0.2)


def _as_host(rank: int) -> RankEnvironment:
    return replace(RankEnvironment.on_this_machine(rank, 4, 0), host=f"host{rank}", local_rank=0)


def _linked(rank: int, root: str) -> dict:
    layout, folder = Layout(shard=4), RunFolder(Path(root))
    here = RankEnvironment.on_this_machine(rank, 4, 0)
    alone = open_links(map_hosts(here), here, Followers(), layout, folder, step=0)
    scheme = AttentionScheme(ring=4)
    pool = open_pool(layout, rank=rank, schemes=[scheme], ledger=Ledger())
    host = _as_host(rank)
    links = open_links(
        map_hosts(host, QUICK),
        host,
        Followers(rings=[pool]),
        layout,
        folder,
        step=3,
        measure=QUICK,
    )
    assert links is not None
    before = pool.attention(scheme)
    plan = StepPlan(step=4, layout=layout, rounds=(), ring_hosts=(0, 1, 2, 3), measure_links=True)
    links.follow(plan)
    ordered = pool.attention(scheme)
    links.follow(replace(plan, measure_links=False))
    kept = pool.attention(scheme)
    two = replace(here, local_rank=0)
    islands = Layout(island=2, shard=2)
    folder_of_two = RunFolder(Path(root) / "two")
    apart = open_links(map_hosts(two, QUICK), two, Followers(), islands, folder_of_two, step=0)
    assert apart is not None
    dist.barrier()
    return {
        "hosts": apart.hosts,
        # Two hosts have one ring: there is nothing to choose.
        "nothing to choose": apart.watch is None,
        "one host": alone is None,
        "watched": links.watch is not None,
        "followed once": before is not ordered and ordered is kept,
    }


def test_hosts_are_measured_and_plans_followed(tmp_path):
    found = run_on_ranks(4, _linked, str(tmp_path))
    assert [one["watched"] for one in found] == [True, False, False, False]
    assert all(one["one host"] and one["followed once"] for one in found)
    assert [one["hosts"] for one in found] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert all(one["nothing to choose"] for one in found)
    first, again = read_lines(tmp_path / "events.jsonl")
    assert first["kind"] == "links_measured"
    assert (first["step"], again["step"]) == (3, 4)
    assert first["hosts"] == [f"host{n}" for n in range(4)]
    assert sorted(first["ring"]) == [0, 1, 2, 3]
    for event in (first, again):
        assert event["seconds"] < 30
        rates = event["bytes_per_s"]
        assert all(rates[a][b] > 1e5 for a in range(4) for b in range(4) if a != b)
