"""Copies of shares between two keepers, each with a folder of its own as on a host of its own."""

from pathlib import Path
from typing import Any

import ray

from cluster.keeper import Brought, Keeper
from tests.trainer.keeping.shares import mixed_state, snapshots_of
from trainer.keeping.folder import check_share, list_shares
from trainer.keeping.hold import Hold, read_hold


def shares(folder: Path) -> dict[str, int]:
    return {found.path.name: found.header.step for found in list_shares(folder)}


def bring(keeper: Any, step: int, other: Any) -> Brought:
    found: Brought = ray.get(keeper.bring.remote(step, [other], 0.0))
    return found


def test_shares_come_whole_and_the_older_ones_go(local_cluster: None, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    remote = ray.remote(num_cpus=0, max_concurrency=4)(Keeper)
    own, other = remote.remote(str(first)), remote.remote(str(second))
    snapshots = snapshots_of(first, mixed_state(0), generation=3)
    for step in (4, 5, 6):
        snapshots.capture(step, mixed_state(step), {"step": step})
        snapshots.settle()
        if step > 4:
            brought = bring(other, step, own)
            assert [found.header.step for found in brought.shares] == [step]
            assert brought.num_bytes > 0
            assert not brought.problem
    assert shares(second) == {"copy-00000005": 5, "copy-00000006": 6}

    # A step that is gone is missing, and what is damaged on the way is not taken.
    assert bring(other, 4, own).shares == ()
    newest = next(found for found in list_shares(first) if found.header.step == 5)
    with newest.path.open("r+b") as file:
        file.seek(newest.header.payload_begin)
        file.write(b"damaged!")
    damaged = bring(other, 5, own)
    assert damaged.shares == ()
    assert "damaged" in damaged.problem
    assert check_share(next(f.path for f in list_shares(second) if f.header.step == 5)).step == 5

    ray.get([other.hold.remote(9), other.settle.remote(6, 3)])
    assert shares(second) == {"copy-00000006": 6}
    assert read_hold(second).kept == 6
    ray.get(other.hold.remote(12))
    assert read_hold(second) == Hold(wanted=12, kept=6)
    ray.get(own.clean.remote())
    assert not first.exists()
    snapshots.close()

    # Islands have folders of their own, with ranks of the same numbers.
    islands = [snapshots_of(first / f"island-{n}", mixed_state(n), generation=4) for n in range(2)]
    for island in islands:
        island.capture(7, mixed_state(7), {"step": 7})
        island.settle()
        island.close()
    assert [found.part for found in bring(other, 7, own).shares] == ["island-0", "island-1"]
    ray.get([other.hold.remote(8), other.settle.remote(7, 4)])
    assert shares(second) == {}
    for number in range(2):
        assert shares(second / f"island-{number}") == {"copy-00000007": 7}
        assert read_hold(second / f"island-{number}") == Hold(wanted=8, kept=7)
    for keeper in (own, other):
        ray.kill(keeper)
