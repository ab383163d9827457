"""Packing and unpacking are inverse, and pieces lie where DTensor puts them."""

import pytest
import torch
from torch import nn

from parallel.hierarchy.mesh import build_hierarchy_mesh, spread_axes
from parallel.hierarchy.shards import ShardGroup, cut_dim, make_groups
from parallel.hierarchy.widths import Widths, piece
from tests.parallel.hierarchy.odd import odd_model, own_part
from tests.ranks import run_on_ranks

SHAPES = {"even": (8, 3), "odd": (5, 3), "tiny": (2,), "experts": (3, 8, 2), "one": (1, 7)}


def _group(widths: Widths) -> ShardGroup:
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    return ShardGroup(
        parameters,
        widths=widths,
        mesh=build_hierarchy_mesh(widths, "cpu"),
        device=torch.device("cpu"),
        is_block=True,
        gathers_per_round=2,
    )


def _round_trips(rank: int) -> bool:
    for widths in (
        Widths(weights=1, gradients=2, optimizer=4),
        Widths(weights=2, gradients=2, optimizer=4),
        Widths(weights=1, gradients=1, optimizer=2),
    ):
        group = _group(widths)
        parts = widths.cuts[1:]
        buffer_GOS = torch.zeros(*parts, group.slot_elements)
        for slot in group.slots:
            whole = torch.arange(1.0, 1 + torch.Size(slot.shape.shape).numel())
            whole = whole.view(slot.shape.shape)
            start, rows = piece(slot.shape.rows, widths.weights, group.place[0])
            shard = whole.narrow(slot.shape.dim, start, rows).contiguous()
            group.add_packed(slot, shard, buffer_GOS)
            back = torch.zeros_like(shard)
            group.unpack(slot, buffer_GOS, back)
            assert torch.equal(back, shard)
            slots_GOs = buffer_GOS[..., slot.start : slot.start + slot.elements]
            assert slots_GOs.count_nonzero() == shard.numel()
            own = slots_GOs[group.place[1], group.place[2]]
            master = group.masters[slot.name]
            wanted = own_part(whole, master)
            assert torch.equal(own[: wanted.numel()].view(wanted.shape), wanted)
            group.adopt_shard(slot, shard)
            assert torch.equal(master.to_local(), wanted)
            assert torch.equal(master.full_tensor().detach(), whole)
            group.adopt_whole(slot, 2 * whole)
            assert torch.equal(master.to_local(), 2 * wanted)
        assert group.master_S.count_nonzero() == sum(
            master.to_local().numel() for master in group.masters.values()
        )
    return True


def test_pieces_round_trip_and_are_those_of_the_placement():
    assert run_on_ranks(4, _round_trips) == [True] * 4


def _two_lines(rank: int) -> list[int]:
    widths = Widths(weights=2, gradients=2, optimizer=2)
    mesh = build_hierarchy_mesh(widths, "cpu", lines=[[0, 2], [1, 3]])
    assert mesh.mesh_dim_names == ("replica", "weights", "gradients", "optimizer")
    assert spread_axes(mesh) == ("weights",)
    ranks = torch.tensor([rank])
    torch.distributed.all_reduce(ranks, group=mesh.get_group("weights"))
    return mesh.mesh.flatten().tolist() + ranks.tolist()


def test_lines_are_sharded_each_for_itself():
    assert run_on_ranks(4, _two_lines) == [[0, 2, 2], [1, 3, 4], [0, 2, 2], [1, 3, 4]]


@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 8), 0), ((8, 3, 3), 0), ((3, 8, 2), 1), ((3, 2, 8), 2), ((3, 5, 5), 0)]
)
def test_stacked_experts_are_cut_where_it_is_even(shape, dim):
    assert cut_dim(shape, Widths(weights=2, gradients=2, optimizer=4)) == dim


def test_each_parameter_is_in_one_group_and_the_rest_comes_last():
    model = odd_model()
    model.blocks[1].gain = model.blocks[0].gain
    groups = make_groups(model, list(model.blocks), lambda named, block: (list(named), block))
    names = [name for group, _ in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert [block for _, block in groups] == [True, True, True, False]
    assert groups[-1][0] == ["embed.weight", "head.weight", "head.bias"]
