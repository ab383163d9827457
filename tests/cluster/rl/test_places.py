"""The guarantees of cluster/rl/places.py."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.preflight import Needs
from cluster.rl.places import places_of
from parallel.config import ParallelConfig
from tests.jobs import tiny_job
from trainer.rl.conducting.split import Split

NEEDS = Needs(workers=2, cpus=1, gpus=0, memory_bytes=0, rollouts=2)


def test_both_sides_can_have_all_but_one_place_where_they_need_the_same(tmp_path: Path) -> None:
    found = places_of(tiny_job(tmp_path), NEEDS, least_ranks=1)
    assert found.now == Split(trainers=2, workers=2)
    assert (found.trainer_sizes, found.most_trainers, found.most_workers) == ((1, 2, 3), 3, 3)
    assert found.fixed == ""
    assert places_of(tiny_job(tmp_path), NEEDS, least_ranks=2).trainer_sizes == (2, 3)


def test_layouts_that_cut_the_model_allow_their_multiples_alone(tmp_path: Path) -> None:
    tiny = tiny_job(tmp_path)
    cut = replace(
        tiny, model=replace(tiny.model, moe=None), parallel=ParallelConfig(pp=2, schedule="1f1b")
    )
    needs = replace(NEEDS, rollouts=4)
    assert places_of(cut, needs, least_ranks=1).trainer_sizes == (2, 4)


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"rollout_cpus": 0.5}, (2, 3)),
        ({"cpus": 0.5}, (3, 2)),
        ({"rollout_gpus": 1.0, "rollout_cpus": 0.5}, (2, 2)),
    ],
)
def test_a_place_that_is_too_small_stays_with_its_kind(
    tmp_path: Path, changes: dict[str, float], most: tuple[int, int]
) -> None:
    found = places_of(tiny_job(tmp_path), replace(NEEDS, **changes), least_ranks=1)
    assert (found.most_trainers, found.most_workers) == most
    assert "with the same on both sides" in found.fixed


@pytest.mark.parametrize(
    ("spares", "island", "told"),
    [(1, 1, "cluster.spares=1"), (0, 2, "parallel.island=2")],
)
def test_what_keeps_places_from_changing_hands_is_named(
    tmp_path: Path, spares: int, island: int, told: str
) -> None:
    job = tiny_job(tmp_path, parallel=ParallelConfig(island=island))
    found = places_of(job, replace(NEEDS, spares=spares), least_ranks=1)
    assert told in found.fixed
    assert (found.most_trainers, found.most_workers) == (2, 2)
