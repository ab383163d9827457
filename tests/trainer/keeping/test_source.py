"""A snapshot is restored by any number of ranks, wherever its shares are."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from tests.ranks import run_on_ranks
from tests.trainer.checkpoint.worlds import spread, whole_state, zeros_like
from tests.trainer.keeping.shares import RUN
from trainer.checkpoint.agreement import RanksFailed
from trainer.checkpoint.filling import fill
from trainer.checkpoint.loading import load_first
from trainer.checkpoint.share import local_part, plan_share
from trainer.errors import DataError
from trainer.keeping.folder import install_share, list_shares, read_header, read_share
from trainer.keeping.header import torn
from trainer.keeping.slot import Owner
from trainer.keeping.snapshots import Snapshots
from trainer.keeping.source import SnapshotSource, find_snapshots
from trainer.keeping.transfer import Move, Station, moves_between


def _mesh(layout: str, ranks: int) -> DeviceMesh | None:
    if layout == "plain":
        return None
    shape = torch.arange(ranks).view(2, -1) if layout == "hybrid" else torch.arange(ranks)
    return DeviceMesh("cpu", shape)


def _keep(rank: int, folder: Path, layout: str, ranks: int, *, generation: int = 1) -> None:
    """Steps 1 to 3 of a run on `ranks` ranks; the last two stay."""
    group = dist.group.WORLD if ranks > 1 else None
    mesh = _mesh(layout, ranks)
    states = [spread(whole_state(step), layout, mesh) for step in range(4)]
    owner = Owner(run=RUN, generation=generation, rank=rank, ranks=ranks)
    share = plan_share(states[0], group)
    snapshots = Snapshots(folder, owner, share, slots=2, meta={"step": 0})
    for step in (1, 2, 3):
        snapshots.capture(step, states[step], {"step": step})
        snapshots.settle()
    snapshots.close()
    assert snapshots.failure is None


def _find(rank: int, folder: Path, ranks: int, host: str = "here") -> list[SnapshotSource]:
    group = dist.group.WORLD if ranks > 1 else None
    return find_snapshots(folder, run=RUN, valid_from=1, rank=rank, host=host, group=group)


def _restored(rank: int, folder: Path, layout: str, ranks: int, host: str = "here") -> int:
    """The step that was restored; every bit of it is looked at."""
    group = dist.group.WORLD if ranks > 1 else None
    mesh = _mesh(layout, ranks)
    state = spread(zeros_like(whole_state(0)), layout, mesh)
    loaded = load_first(state, _find(rank, folder, ranks, host), group)
    assert loaded.place == "memory"
    assert loaded.meta == {"step": loaded.step}
    _require_equal(state, spread(whole_state(loaded.step), layout, mesh))
    return loaded.step


def _require_equal(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        assert torch.equal(local_part(state[name]), local_part(tensor)), name


def _four_ranks(rank: int, folder: Path) -> list[int]:
    _keep(rank, folder / "hybrid", "hybrid", 4)
    _keep(rank, folder / "rows", "rows", 4)
    dist.barrier()
    steps = [
        _restored(rank, folder / "hybrid", layout, 4) for layout in ("hybrid", "columns", "plain")
    ]
    return [*steps, _restored(rank, folder / "rows", "hybrid", 4)]


def test_any_layout_and_number_of_ranks_gets_the_bits_that_were_kept(tmp_path):
    assert run_on_ranks(4, _four_ranks, tmp_path) == [[3] * 4] * 4
    assert _restored(0, tmp_path / "hybrid", "plain", 1) == 3
    assert _restored(0, tmp_path / "rows", "plain", 1) == 3
    # Replicas share the work: together they hold every element once.
    held = [f.header.payload_bytes for f in list_shares(tmp_path / "hybrid") if f.header.step == 3]
    whole = sum(t.numel() * t.element_size() for t in whole_state(3).values())
    assert len(held) == 4
    assert whole <= sum(held) <= whole + 8 * 4 * len(whole_state(3))


def _corrupt(share: Path) -> None:
    """Flip one bit of the payload."""
    content = bytearray(share.read_bytes())
    content[read_header(share).payload_begin] ^= 1
    share.write_bytes(bytes(content))


def _three_ranks(rank: int, folder: Path) -> list[object]:
    _keep(rank, folder, "rows", 3)
    dist.barrier()
    found: list[object] = []
    shares = {(f.header.rank, f.header.step): f.path for f in list_shares(folder)}
    if rank == 0:
        _corrupt(shares[1, 3])
    dist.barrier()
    found.append(_restored(rank, folder, "columns", 3))
    if rank == 0:
        shares[2, 2].unlink()
    dist.barrier()
    (source,) = _find(rank, folder, 3)
    assert source.step == 3
    try:
        source.prepare(spread(whole_state(0), "rows", _mesh("rows", 3)), dist.group.WORLD)
    except RanksFailed as failure:
        found.append(str(failure))
    return found


def test_a_damaged_share_leads_to_the_step_before_and_is_named(tmp_path):
    replies = run_on_ranks(3, _three_ranks, tmp_path)
    assert all(reply == replies[0] for reply in replies)
    step, message = replies[0]
    assert step == 2
    assert "lacks whole shares of ranks [1]" in message
    assert "is damaged: checksum" in message


def _two_hosts(rank: int, folder: Path) -> list[int]:
    """Ranks 0 and 1 are on one host and 2 and 3 on another, which does not see the first's."""
    host = "a" if rank < 2 else "b"
    _keep(rank, folder / host, "hybrid", 4)
    dist.barrier()
    steps = [_restored(rank, folder / host, "columns", 4, host)]
    dist.barrier()
    if rank == 0:
        # Step 3 of rank 1 is whole on the other host alone.
        (found,) = [
            f for f in list_shares(folder / "a") if (f.header.rank, f.header.step) == (1, 3)
        ]
        install_share(folder / "b", read_share(found.path))
        _corrupt(found.path)
    dist.barrier()
    steps.append(_restored(rank, folder / host, "rows", 4, host))
    return steps


def test_shares_come_from_the_hosts_that_have_them(tmp_path):
    assert run_on_ranks(4, _two_hosts, tmp_path) == [[3, 3]] * 4


def test_only_what_is_needed_is_moved_and_once_per_host():
    stations = [
        Station(host="a", needed={0, 1}, held={0}),
        Station(host="a", needed={1}, held={0}),
        Station(host="b", needed={2}, held={1, 2}),
        Station(host="c", needed=set(), held=set()),
        Station(host="d", needed={1}, held=set()),
    ]
    moves = moves_between(stations, {0: 0, 1: 2, 2: 2})
    assert moves == [Move(1, 2, 0), Move(1, 2, 4)]


def test_torn_slots_and_other_runs_are_not_looked_at(tmp_path):
    _keep(0, tmp_path, "plain", 1)
    newest = max(list_shares(tmp_path), key=lambda found: found.header.step)
    with newest.path.open("r+b") as file:
        file.write(torn(newest.header.sequence))
    assert _restored(0, tmp_path, "plain", 1) == 2
    assert find_snapshots(tmp_path, run="0" * 32, valid_from=1, rank=0, host="", group=None) == []
    assert find_snapshots(tmp_path, run=RUN, valid_from=2, rank=0, host="", group=None) == []


def test_a_share_that_is_overwritten_after_the_check_is_not_taken(tmp_path):
    _keep(0, tmp_path, "plain", 1)
    source, *_ = _find(0, tmp_path, 1)
    state = zeros_like(whole_state(0))
    manifest = source.prepare(state, None)
    newest = max(list_shares(tmp_path), key=lambda found: found.header.step)
    with newest.path.open("r+b") as file:
        file.write(torn(newest.header.sequence))
    with pytest.raises(ValueError, match="was written to"), source.opened() as reader:
        fill(state, manifest.tensors, reader)
    with pytest.raises(DataError, match="no checkpoint can be loaded"):
        load_first(state, [source], None)
