"""The guarantees of comms/outer/membership.py, one by one, on real ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from comms.ledger import Ledger
from comms.outer.fragment import Fragment, OuterState
from comms.outer.link import IslandLink
from comms.outer.membership import agree
from tests.ranks import run_on_ranks

SIZES = (5, 3, 2)


def _agreed(rank: int) -> dict[str, object]:
    """Rank 1 has committed most, rank 2 as many, and rank 0 lags behind in fragment 1."""
    ledger = Ledger()
    link = IslandLink("same", dist.new_group(backend="gloo"), None, ledger.sent)
    fragments = [Fragment({str(n): nn.Parameter(torch.ones(n))}) for n in SIZES]
    if rank:
        fragments[1].restore(OuterState(torch.full((3,), 2.0), torch.full((3,), 0.5)))
    agreed = agree(
        link, fragments, "same", fingerprint=9, begun=(4, 3, 5)[rank], committed=min(rank, 1)
    )
    with pytest.raises(ValueError, match=r"places \[1, 2\] differ from place 0") as refused:
        agree(link, fragments, "same", fingerprint=min(rank, 1), begun=0, committed=0)
    return {
        "agreed": agreed,
        "refused": "layout='own' allows any" in str(refused.value),
        "states": [(f.state.parameters, f.state.momentum) for f in fragments],
        "sent": ledger.take()[0],
    }


@pytest.fixture(scope="module")
def found() -> list[dict[str, object]]:
    return run_on_ranks(3, _agreed)


def test_all_take_over_what_differs_from_the_island_with_the_most_exchanges(found):
    for rank, one in enumerate(found):
        assert (one["agreed"].begun, one["agreed"].committed) == (5, 1)
        assert one["agreed"].replaced == ((1,) if rank == 0 else ())
        for n, (parameters, momentum) in enumerate(one["states"]):
            value, speed = (2.0, 0.5) if n == 1 else (1.0, 0.0)
            assert torch.equal(parameters, torch.full((SIZES[n],), value))
            assert torch.equal(momentum, torch.full((SIZES[n],), speed))


def test_fragments_that_are_equal_everywhere_are_not_sent(found):
    row_bytes = 8 * (3 + 2 * len(SIZES))
    for rank, one in enumerate(found):
        expected = {"island/all_gather": 2 * 2 * row_bytes}
        if rank == 1:
            expected["island/broadcast"] = 2 * 4 * SIZES[1]
        assert one["sent"] == expected


def test_islands_that_could_not_train_together_are_refused_on_all_ranks(found):
    assert [one["refused"] for one in found] == [True] * 3
