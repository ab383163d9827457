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


def test_islands_have_no_copies_on_other_hosts():
    assert problem_of(KeepingConfig(replica_hosts=1), islands=1) is None
    for fine in ("auto", 0):
        assert problem_of(KeepingConfig(replica_hosts=fine), islands=2) is None
    problem = problem_of(KeepingConfig(replica_hosts=1), islands=2)
    assert "keep.replica_hosts=1 does not go with parallel.island=2" in problem
    assert "leave it at auto, or set it to 0" in problem
    assert "keep.replica_hosts=auto is 0 with islands" in without_copies(1, islands=True)
    assert without_copies(1, islands=False) == without_copies(0, islands=True) == ""


def test_a_recipe_is_refused_for_it():
    with pytest.raises(ValueError, match=r"keep\.replica_hosts=1 does not go"):
        JobConfig(parallel=ParallelConfig(island=2), keep=KeepingConfig(replica_hosts=1))
