"""The guarantees of trainer/checkpoint/boxes.py."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from tests.ranks import run_on_ranks
from trainer.checkpoint.boxes import Box, boxes_of, overlap

FLAT = [
    ((8, 3), [Shard(0)]),
    ((3, 5), [Shard(0)]),
    ((4, 3, 16), [_StridedShard(2, split_factor=2)]),
    ((2, 2), [Replicate()]),
]
SQUARE = [
    ((8, 6), [Shard(0), Shard(1)]),
    ((8, 6), [_StridedShard(0, split_factor=2), Shard(0)]),
    ((6, 4, 8), [Shard(0), _StridedShard(2, split_factor=2)]),
    ((5, 3), [Replicate(), Shard(0)]),
]


def _boxes(rank: int) -> list:
    found = []
    meshes = (DeviceMesh("cpu", range(4)), DeviceMesh("cpu", torch.arange(4).view(2, 2)))
    for mesh, cases in zip(meshes, (FLAT, SQUARE), strict=True):
        for shape, placements in cases:
            whole = torch.arange(torch.Size(shape).numel()).view(shape)
            tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            local = tensor.to_local()
            boxes = boxes_of(tensor)
            covered = torch.zeros_like(local)
            for box in boxes:
                index = tuple(slice(o, o + n) for o, n in zip(box.offsets, box.shape, strict=True))
                assert torch.equal(box.of(local), whole[index])
                box.of(covered).add_(1)
            assert bool((covered == 1).all())
            found.append(boxes)
    return found


def test_boxes_cover_the_local_part_and_name_its_elements():
    results = run_on_ranks(4, _boxes)
    halves = results[1][2]
    assert [box.offsets for box in halves] == [(0, 0, 2), (0, 0, 10)]
    assert results[3][1] == []
    assert boxes_of(torch.zeros(0, 3)) == []
    assert boxes_of(torch.zeros(())) == [Box((), (), ())]


def test_overlaps_are_the_common_elements():
    box = Box((2, 0), (3, 4), (10, 0))
    assert overlap(box, (0, 0), (3, 2)) == Box((2, 0), (1, 2), (10, 0))
    assert overlap(box, (4, 3), (9, 9)) == Box((4, 3), (1, 1), (12, 3))
    assert overlap(box, (5, 0), (1, 4)) is None
