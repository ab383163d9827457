"""The guarantees of cluster/recovery/shrink.py."""

from pathlib import Path

from cluster.recovery.shrink import largest_job
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


def test_as_many_as_there_were_change_nothing(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, parallel=ParallelConfig(replica=2))
    assert largest_job(job, at_most=2, at_least=2) == (job, 2)
