"""The guarantees of cluster/recovery/shrink.py."""

from pathlib import Path

from cluster.islands import GoingIslands
from cluster.recovery.shrink import islands_left, largest_job
from comms.config import CommsConfig, IslandConfig
from parallel.config import ParallelConfig
from tests.jobs import tiny_job


def test_copies_give_way_and_the_batch_stays(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, parallel=ParallelConfig(replica=4, shard=1))
    found = largest_job(job, at_most=3, at_least=1)
    assert found is not None
    smaller, ranks = found
    assert ranks == 3
    assert smaller.parallel.replica == "auto"
    assert smaller.parallel.shard == 1
    assert smaller.train == job.train


def test_then_how_finely_states_are_cut(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, parallel=ParallelConfig(replica=1, shard=4))
    found = largest_job(job, at_most=3, at_least=1)
    assert found is not None
    assert (found[0].parallel.shard, found[1]) == ("auto", 3)


def test_what_cuts_the_model_stays(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, parallel=ParallelConfig(tp=2))
    found = largest_job(job, at_most=3, at_least=1)
    assert found is not None
    assert (found[0].parallel.tp, found[1]) == (2, 2)
    assert largest_job(job, at_most=1, at_least=1) is None


def test_islands_give_way_before_what_is_inside_them(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, parallel=ParallelConfig(island=3, replica=2))
    found = largest_job(job, at_most=5, at_least=1, island_ranks=2)
    assert found is not None
    assert (found[0].parallel.island, found[0].parallel.replica, found[1]) == (2, 2, 4)
    found = largest_job(job, at_most=1, at_least=1, island_ranks=2)
    assert found is not None
    assert (found[0].parallel.island, found[0].parallel.replica, found[1]) == (1, "auto", 1)


def test_islands_that_are_left_keep_their_shares(tmp_path: Path) -> None:
    shared = CommsConfig(island=IslandConfig(shares=(2, 1, 4)))
    job = tiny_job(tmp_path, parallel=ParallelConfig(island=3), comms=shared)
    assert largest_job(job, at_most=3, at_least=1, island_ranks=1) == (job, 3)
    for at_most, numbers, wanted in ((2, (0, 2), (2, 4)), (1, (2,), (4,))):
        found = largest_job(job, at_most=at_most, at_least=1, island_ranks=1)
        assert found is not None
        assert found[0].comms.island.shares == "equal"
        left = GoingIslands(job, numbers).shared_out(found[0])
        assert left.comms.island.shares == wanted
        assert left.parallel == found[0].parallel
    assert GoingIslands(job).shared_out(job) == job


def test_islands_that_lost_nothing_go_on() -> None:
    def left(before: tuple[int, ...], count: int) -> tuple[int, ...]:
        return islands_left(4, before, without_host={1}, broken={0, 1}, count=count)

    assert left((0, 1, 2, 3), 2) == (2, 3)
    assert left((0, 1, 2, 3), 3) == (0, 2, 3)
    # One that had not gone on comes back.
    assert left((0, 2), 3) == (0, 2, 3)
    assert left((2,), 1) == (2,)


def test_as_many_as_there_were_change_nothing(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, parallel=ParallelConfig(replica=2))
    assert largest_job(job, at_most=2, at_least=2) == (job, 2)
