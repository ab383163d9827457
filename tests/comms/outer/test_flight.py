"""Exchanges that are begun again, or whose outcome is told, by `comms/outer/diloco.py`."""

import copy

import torch

from tests.comms.outer.islands import STREAM, Island, make_model
from tests.ranks import run_on_ranks


def _apart(rank: int) -> bool:
    """Whether islands that go on a step apart, one before a merge and one behind it, end as they
    would have."""
    whole = Island(rank, STREAM)
    while whole.outer.sent is None:
        whole.step()
    kept = _kept(whole)
    fragment, sent = whole.outer.sent[0], whole.outer.sent[1].clone()
    before = _kept(whole)
    while whole.outer.counts[2] == 0:
        before, kept = kept, None
        whole.step()
        kept = _kept(whole)
    steps, state, weights = kept if rank == 0 else before
    again = Island(rank, STREAM, model=make_model(seed=7))
    again.model.load_state_dict(weights)
    again.outer.load_state_dict(state)
    again.steps = steps
    if rank == 1:
        named = whole.outer._fragments[fragment]
        again.outer.foretell(0, named.state, whole.outer.last_finite)
        again.outer.resend(sent)
    for _ in range(10):
        whole.step()
    while again.steps < whole.steps:
        again.step()
    same = all(map(torch.equal, whole.parameters(), again.parameters()))
    whole.outer.close()
    again.outer.close()
    return same


def _kept(island: Island) -> tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    state = {name: value.clone() for name, value in island.outer.kept_state().items()}
    return island.steps, state, copy.deepcopy(island.model.state_dict())


def test_islands_that_go_on_around_a_merge_end_as_they_would_have():
    assert run_on_ranks(2, _apart) == [True, True]
