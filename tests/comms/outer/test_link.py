"""The guarantees of comms/outer/link.py, one by one, on sharded and unequal islands."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from comms.ledger import Ledger
from comms.outer.link import IslandLink
from comms.outer.shards import flat_of, whole_flat
from tests.comms.outer.islands import STREAM, Island, make_model
from tests.ranks import run_on_ranks


def _sharded(rank: int) -> dict[str, object]:
    """Two islands of two shards against two islands that are not sharded, in a group of four."""
    island = rank // 2
    pairs = [dist.new_group(ranks, backend="gloo") for ranks in ([0, 1], [2, 3])]
    lines = [dist.new_group(ranks, backend="gloo") for ranks in ([0, 2], [1, 3])]
    meshes = init_device_mesh("cpu", (2, 2), mesh_dim_names=("island", "shard"))
    outer = {**STREAM, "wire": "fp32", "outer_momentum": 0.9}
    found: dict[str, object] = {}
    results = {}
    for kind in ("same", "own", "whole"):
        model = make_model()
        optimizer = torch.optim.SGD
        if kind != "whole":
            for layer in (model[0], model[2], model[4]):
                fully_shard(layer, mesh=meshes["shard"])
        group, inside = lines[rank % 2], pairs[island]
        if kind == "own" and rank % 2:
            group = None
        run = Island(
            island,
            {**outer, "layout": "own" if kind == "own" else "same"},
            model=model,
            group=group,
            inside=inside,
            optimizer=optimizer,
            alone=kind == "own" and rank % 2 == 1,
        )
        run.ledger.take()
        for _ in range(12):
            run.step()
        run.outer.finish()
        found[f"{kind} sent"] = run.ledger.take()[0]
        found[f"{kind} sizes"] = run.outer.message_bytes()
        results[kind] = [p.full_tensor() if isinstance(p, DTensor) else p for p in run.parameters()]
        run.outer.close()
    for kind in ("same", "own"):
        pairs_of = zip(results[kind], results["whole"], strict=True)
        found[kind] = max((a - b).abs().max().item() for a, b in pairs_of)
    return found


def test_sharded_islands_train_as_whole_ones():
    for rank, one in enumerate(run_on_ranks(4, _sharded)):
        # The order in which FSDP sums its shards' gradients is all that differs.
        assert one["same"] < 1e-6
        assert one["own"] < 1e-6
        vote_bytes = 4 * 4 * 2
        assert one["same sent"] == {
            "island/all_gather": sum(one["same sizes"]) + one["same sizes"][0],
            "island_inside/all_reduce": vote_bytes,
        }
        own_bytes = sum(one["own sizes"]) + one["own sizes"][0]
        if rank % 2 == 0:
            assert one["own sent"]["island/all_gather"] == own_bytes
            assert one["own sent"]["island_inside/broadcast"] == 2 * own_bytes
        else:
            assert "island/all_gather" not in one["own sent"]


def _unequal(rank: int) -> dict[str, bool]:
    """An island of two shards and one that is a single rank, which starts from other parameters."""
    island = int(rank == 2)
    pair = dist.new_group([0, 1], backend="gloo")
    leaders = dist.new_group([0, 2], backend="gloo")
    mesh = DeviceMesh("cpu", [0, 1])
    model = make_model(seed=island)
    if rank < 2:
        for layer in (model[0], model[2], model[4]):
            fully_shard(layer, mesh=mesh)
    run = Island(
        island,
        {**STREAM, "every": (9, 6)[island], "overlap_steps": 1, "layout": "own"},
        model=model,
        group=None if rank == 1 else leaders,
        inside=pair if rank < 2 else None,
        alone=rank == 1,
    )
    for _ in range((18, 12)[island]):
        run.step()
    run.outer.finish()
    parts = torch.cat([v.flatten() for v in run.outer.global_parameters().values()])
    whole = whole_flat(list(model.parameters()), parts)
    everywhere = [torch.empty_like(whole) for _ in range(3)]
    dist.all_gather(everywhere, whole)
    run.outer.close()
    moved = not torch.equal(whole, flat_of(list(make_model(seed=0).parameters())).detach())
    return {"moved": moved, "equal": all(torch.equal(one, whole) for one in everywhere)}


def test_islands_of_different_size_and_speed_share_global_parameters_bitwise():
    for one in run_on_ranks(3, _unequal):
        assert one == {"moved": True, "equal": True}


def _refused(rank: int) -> list[str]:
    group = dist.group.WORLD
    texts = []
    for layout, between, inside in (
        ("same", None, None),
        ("own", None, None),
        ("own", None, group),
    ):
        with pytest.raises(ValueError, match="layout=") as error:
            IslandLink(layout, between, inside, Ledger().sent)
        texts.append(str(error.value))
    return texts


def test_groups_that_do_not_fit_the_layout_are_refused():
    texts = run_on_ranks(1, _refused)[0]
    assert "every rank needs a group" in texts[0]
    assert "rank 0 of `inside` alone" in texts[1]
