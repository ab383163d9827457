"""All ranks come to the same verdict."""

import math

import pytest
import torch

from tests.ranks import run_on_ranks
from trainer.vote import Ballot, vote


def _ballot(rank: int, **changes: object) -> Ballot:
    fields = {
        "step": 7,
        "loss_sum": 1.0 + rank,
        "aux_sum": 0.5,
        "squared_norm": 4.0,
        "stop": False,
        "save": False,
        "expert_load": torch.full((2, 3), float(rank)),
    }
    return Ballot(**{**fields, **changes})


def _cast(rank: int, case: str) -> tuple:
    changes: dict[str, dict[int, dict]] = {
        "calm": {},
        "stop": {1: {"stop": True}},
        "save": {2: {"save": True}},
        "nan": {1: {"loss_sum": math.nan}},
        "inf": {2: {"squared_norm": math.inf}},
        "lost": {0: {"step": 8}},
    }
    ballot = _ballot(rank, **changes[case].get(rank, {}))
    try:
        verdict = vote(ballot, rank=rank, world_size=3)
    except RuntimeError as error:
        return (str(error),)
    return (
        verdict.commit,
        verdict.stop,
        verdict.save,
        verdict.bad_ranks,
        verdict.loss_sum,
        verdict.grad_norm,
        verdict.expert_load.tolist(),
    )


def test_sums_and_norm_are_over_all_ranks():
    for result in run_on_ranks(3, _cast, "calm"):
        commit, stop, save, bad, loss, norm, load = result
        assert (commit, stop, save, bad) == (True, False, False, ())
        assert (loss, norm) == (6.0, math.sqrt(12.0))
        assert load == [[3.0] * 3] * 2


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("stop", (True, True, False, ())),
        ("save", (True, False, True, ())),
        ("nan", (False, False, False, (1,))),
        ("inf", (False, False, False, ())),
    ],
)
def test_one_rank_is_enough(case, wanted):
    assert [r[:4] for r in run_on_ranks(3, _cast, case)] == [wanted] * 3


def test_ranks_at_different_steps_are_refused():
    for (message,) in run_on_ranks(3, _cast, "lost"):
        assert message.startswith("ranks disagree on the step")


def test_a_lone_rank_needs_no_group():
    verdict = vote(_ballot(0), rank=0, world_size=1)
    assert verdict.commit
    assert verdict.grad_norm == 2.0


def _cast_leaving(rank: int, asked: int, unkept: int) -> tuple[bool, bool, bool]:
    ballot = _ballot(rank, regroup=rank == asked, in_memory=rank != unkept)
    verdict = vote(ballot, rank=rank, world_size=2)
    return verdict.regroup, verdict.in_memory, verdict.stop


def test_one_rank_that_is_asked_to_leave_is_enough_and_all_must_have_the_step():
    assert run_on_ranks(2, _cast_leaving, 1, -1) == [(True, True, False)] * 2
    assert run_on_ranks(2, _cast_leaving, -1, 0) == [(False, False, False)] * 2
