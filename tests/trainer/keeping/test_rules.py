"""Which snapshots go with which runs."""

import pytest

from parallel.config import ParallelConfig
from trainer.config import JobConfig
from trainer.keeping.config import KeepingConfig
from trainer.keeping.rules import problem_of, without_copies


def test_islands_have_a_snapshot_of_every_step_or_none():
    assert problem_of(KeepingConfig(interval_steps=5), islands=1) is None
    for fine in ("auto", 0, 1):
        assert problem_of(KeepingConfig(interval_steps=fine), islands=2) is None
    problem = problem_of(KeepingConfig(interval_steps=5), islands=2)
    assert "keep.interval_steps=5 does not go with parallel.island=2" in problem
    assert "leave it at auto, or set it to 1 or 0" in problem


def test_islands_have_copies_on_other_hosts_where_the_recipe_demands_them():
    auto, one = KeepingConfig(), KeepingConfig(replica_hosts=1)
    assert problem_of(one, islands=2) is None
    assert (auto.replicas_over(3), auto.replicas_over(3, islands=True)) == (1, 0)
    assert one.replicas_over(3) == one.replicas_over(3, islands=True) == 1
    told = without_copies(auto, hosts=3, islands=True)
    assert "keep.replica_hosts=auto is 0 with islands" in told
    assert "With keep.replica_hosts=1 nothing" in told
    assert without_copies(one, hosts=3, islands=True) == ""
    assert without_copies(auto, hosts=1, islands=True) == ""
    assert without_copies(auto, hosts=3, islands=False) == ""
    assert without_copies(KeepingConfig(interval_steps=0), hosts=3, islands=True) == ""


def test_a_recipe_is_refused_for_it():
    with pytest.raises(ValueError, match=r"keep\.interval_steps=5 does not go"):
        JobConfig(parallel=ParallelConfig(island=2), keep=KeepingConfig(interval_steps=5))
