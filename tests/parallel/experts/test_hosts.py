"""What `parallel/experts/hosts.py` guarantees; ranks play hosts."""

import pytest
import torch
import torch.distributed as dist

from comms.ledger import Ledger
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.hosts import ExpertStages, stages_of
from parallel.experts.placement import Placement
from parallel.experts.route import Hosts
from tests.parallel.experts.test_dispatch import EXPERTS, KINDS, dispatched
from tests.ranks import run_on_ranks

APART = (0, 1, 2, 3)
"""The host of each rank."""

CLOSE = [((0, 1, 2, 3),), ((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)), ((0, 1), (2, 3))]


def followed(rank):
    ledger, group = Ledger(), dist.group.WORLD
    dispatch = ExpertDispatch(group, num_experts=EXPERTS, ledger=ledger)
    stages = ExpertStages([range(4)], [dispatch])
    found, groups = [], []
    for close in CLOSE:
        stages.follow(APART, close)
        groups.append(len(dist.distributed_c10d._world.pg_map))
        ledger.take()
        results = {kind: dispatched(dispatch, kind) for kind in KINDS}
        sent = ledger.take()[0]
        found.append((results, sent))
    dispatch.lend(Placement(tuple(range(EXPERTS)), ranks=4, loans=((5, 0),)))
    counts = torch.tensor([3, 1, 0, 2, 4, 5, 1, 2]) + rank
    x = torch.randn(int(counts.sum()), 4, generator=torch.Generator().manual_seed(rank))
    lent = [dispatch.run(x, counts, lambda rows, _: rows * 2)]
    stages.follow(APART, CLOSE[3])
    lent.append(dispatch.run(x, counts, lambda rows, _: rows * 2))
    return {"found": found, "groups": groups, "lent": lent, "x": x}


@pytest.fixture(scope="module")
def results():
    return run_on_ranks(4, followed)


def test_results_stay_bitwise_the_same_whatever_is_together(results):
    for rank in results:
        wanted, _ = rank["found"][0]
        for got, _ in rank["found"][1:]:
            for kind in KINDS:
                for a, b in zip(got[kind], wanted[kind], strict=True):
                    assert torch.equal(a, b)
        for y in rank["lent"]:
            assert torch.equal(y, 2 * rank["x"])


def test_close_hosts_are_the_first_stage(results):
    for rank in results:
        staged = ["ep/all_to_all_between_hosts" in sent for _, sent in rank["found"]]
        assert staged == [False, True, True, True, True]


def test_groups_are_made_once(results):
    for rank in results:
        before, *made = rank["groups"]
        # Two of each way are this rank's own.
        assert made == [before + 2, before + 4, before + 6, before + 6]


def test_hosts_that_do_not_share_a_group_evenly_are_apart():
    one_rank_each, two_each = range(4), (0, 0, 1, 1, 2, 2, 3, 3)
    assert stages_of(range(4), APART, ((0, 1, 2), (3,))) is None
    assert stages_of(range(4), APART, ((0,), (1,), (2,), (3,))) is None
    assert stages_of(range(4), one_rank_each, ((0, 3), (1, 2))) == Hosts(((0, 3), (1, 2)))
    uneven = stages_of(range(8), two_each, ((0, 1, 2), (3,)))
    assert uneven == Hosts(((0, 1), (2, 3), (4, 5), (6, 7)))
    assert stages_of(range(8), two_each, ((0, 2), (1, 3))) == Hosts(((0, 1, 4, 5), (2, 3, 6, 7)))
    # An expert group inside one host travels directly.
    assert stages_of((2, 3), two_each, ((0, 2), (1, 3))) is None


@pytest.mark.parametrize("ranks", [((0, 1), (2,)), ((1, 0), (2, 3)), ((0, 1), (1, 2)), ((0, 2),)])
def test_hosts_that_are_not_equal_parts_are_refused(ranks):
    with pytest.raises(ValueError, match="equal groups"):
        Hosts(ranks)
