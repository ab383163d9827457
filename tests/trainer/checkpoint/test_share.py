"""The division of writing: everything once, replicas spread, nothing for empty holders."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from tests.ranks import run_on_ranks
from tests.trainer.checkpoint.worlds import spread, whole_state
from trainer.checkpoint.agreement import RanksFailed, exchange
from trainer.checkpoint.share import plan_share


def _check_plans(rank: int, _: Path) -> None:
    group = dist.group.WORLD
    flat = DeviceMesh("cpu", list(range(4)))
    square = DeviceMesh("cpu", torch.arange(4).view(2, 2))
    for kind, mesh in (("plain", flat), ("rows", flat), ("columns", flat), ("hybrid", square)):
        _check_every_element_once(spread(whole_state(0), kind, mesh), group)
    _check_replicas_are_spread(group)
    _check_empty_holders(rank, flat, group)
    odd = {"a": torch.zeros(2 if rank == 1 else 3)}
    with pytest.raises(
        RanksFailed, match=r"rank 1 holds a as F32\[2\], a rank before it as F32\[3\]"
    ):
        plan_share(odd, group)
    with pytest.raises(RanksFailed, match="rank 0: tensor a has dtype"):
        plan_share({"a": torch.zeros(2, dtype=torch.complex64)}, group)


def _check_every_element_once(state: dict[str, torch.Tensor], group: dist.ProcessGroup) -> None:
    share = plan_share(state, group)
    for name, tensor in state.items():
        written = torch.zeros(tensor.shape, dtype=torch.int32)
        for chunk in share.tensors[name].chunks:
            block = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.shape, strict=True))
            written[block] += 1
        assert bool((written == 1).all()), name
    mine = {(piece.name, piece.shape) for piece in share.pieces}
    listed = {
        (name, chunk.shape)
        for name, entry in share.tensors.items()
        for chunk in entry.chunks
        if chunk.file == share.file
    }
    assert mine == listed


def _check_replicas_are_spread(group: dist.ProcessGroup) -> None:
    share = plan_share({f"w{i}": torch.zeros(100 + i) for i in range(16)}, group)
    sizes = exchange(group, share.pieces[-1].end)
    assert max(sizes) < 1.05 * min(sizes)


def _check_empty_holders(rank: int, mesh: DeviceMesh, group: dist.ProcessGroup) -> None:
    whole = {"three_rows": torch.arange(12.0).view(3, 4)}
    share = plan_share(spread(whole, "rows", mesh), group)
    assert len(share.pieces) == (0 if rank == 3 else 1)
    assert len(share.tensors["three_rows"].chunks) == 3


def test_shares_on_four_ranks(tmp_path: Path) -> None:
    run_on_ranks(4, _check_plans, tmp_path)


def test_one_process_writes_everything() -> None:
    state = whole_state(1)
    share = plan_share(state, None)
    assert {piece.name for piece in share.pieces} == set(state) - {"model.none"}
    assert share.tensors["model.none"].chunks == ()
