"""Experts on loan and experts that move: `parallel/experts/loans.py` and `moving.py`."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from comms.ledger import Ledger
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.hosts import host_groups
from parallel.experts.loans import Loans
from parallel.experts.moving import move_experts, moves_between
from parallel.experts.placement import Placement
from tests.ranks import run_on_ranks
from trainer.model.experts import grouped_swiglu

EXPERTS, WIDTH, INNER, RANKS = 8, 16, 12, 4
LENT = Placement(tuple(range(EXPERTS)), RANKS, loans=((0, 1), (0, 3), (5, 0), (5, 3)))


@st.composite
def lent(draw):
    ranks, each = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    pairs = [(s, r) for s in range(ranks * each) for r in range(ranks) if s // each != r]
    loans = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=6)) if pairs else []
    counts = draw(st.lists(st.integers(0, 9), min_size=ranks * each, max_size=ranks * each))
    return Placement(tuple(range(ranks * each)), ranks, tuple(sorted(loans))), counts


@given(lent())
def test_holders_share_rows_evenly_and_none_is_lost(situation):
    placement, counts = situation
    loans = [Loans(placement, rank) for rank in range(placement.ranks)]
    split = loans[0].split(torch.tensor(counts)).tolist()
    rows = torch.tensor([slot for slot, n in enumerate(counts) for _ in range(n)])
    held = loans[0].regroup(split).apply(rows).split(split)
    start = 0
    shares = {}
    for rank, number in enumerate(loans[0].slots):
        own = [s for s in range(len(counts)) if placement.owner(s) == rank]
        borrowed = [slot for slot, to in placement.loans if to == rank]
        assert number == len(own) + len(borrowed)
        for slot, part in zip([*own, *borrowed], held[start : start + number], strict=True):
            assert (part == slot).all()
            shares.setdefault(slot, []).append(len(part))
        start += number
    for slot, parts in shares.items():
        assert sum(parts) == counts[slot]
        assert max(parts) - min(parts) <= 1
    for a, one in enumerate(loans):
        assert [one.sent[b] for b in range(len(loans))] == [other.received[a] for other in loans]
        assert len(one.lent) == sum(one.sent)


def stacked():
    generator = torch.Generator().manual_seed(0)
    shapes = ((EXPERTS, WIDTH, 2 * INNER), (EXPERTS, INNER, WIDTH))
    return [torch.randn(shape, generator=generator) / 4 for shape in shapes]


def inputs(rank):
    generator = torch.Generator().manual_seed(50 + rank)
    counts = torch.tensor([9, 1, 0, 2, 3, 8, 0, 1]) + rank
    shape = (int(counts.sum()), WIDTH)
    return counts, *(torch.randn(shape, generator=generator) for _ in range(2))


def run_lent(rank):
    found = []
    for per_host in (RANKS, 2):
        hosts = host_groups([range(RANKS)], ranks_per_host=per_host)
        ledger = Ledger()
        dispatch = ExpertDispatch(dist.group.WORLD, num_experts=EXPERTS, ledger=ledger, hosts=hosts)
        for placement in (Placement.initial(EXPERTS, RANKS), LENT):
            dispatch.lend(placement)
            counts, x, upstream = inputs(rank)
            x.requires_grad_(True)
            each = EXPERTS // RANKS
            weights = [w[rank * each : (rank + 1) * each].requires_grad_(True) for w in stacked()]

            def apply(rows, own, dispatch=dispatch, weights=weights):
                return grouped_swiglu(rows, own, *(dispatch.weights(w) for w in weights))

            y = dispatch.run(x, counts, apply)
            grads = torch.autograd.grad(y, (x, *weights), upstream)
            found.append(([y.detach(), *grads], ledger.take()[0]))
    return found


def test_lending_changes_neither_results_nor_gradients_and_its_bytes_are_counted():
    found = run_on_ranks(RANKS, run_lent)
    expert_bytes = 4 * 3 * WIDTH * INNER
    for rank, (plain, direct, plain_staged, staged) in enumerate(found):
        for a, b, c in zip(plain[0], direct[0], staged[0], strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
            assert torch.equal(b, c)
        assert "ep/lend_experts" not in plain[1] | plain_staged[1]
        # Weights go from the owner to the borrower, gradients the other way.
        given_out = sum(LENT.owner(slot) == rank for slot, _ in LENT.loans)
        taken = sum(to == rank for _, to in LENT.loans)
        assert direct[1]["ep/lend_experts"] == (given_out + taken) * expert_bytes


BEFORE = Placement((3, 0, 1, 2, 7, 6, 5, 4), RANKS)
AFTER = Placement((0, 3, 1, 6, 7, 2, 4, 5), RANKS)


def run_moved(rank):
    each = EXPERTS // RANKS
    # Row s of the stack is filled with the number of its expert.
    numbers = torch.tensor([BEFORE.expert_slot.index(s) for s in range(EXPERTS)])
    mine = numbers[rank * each : (rank + 1) * each]
    tensors = [mine.float().view(each, 1).repeat(1, 3), mine.bfloat16().view(each, 1, 1).clone()]
    ledger = Ledger()
    group = dist.group.WORLD
    move_experts(tensors, before=BEFORE, after=AFTER, group=group, ledger=ledger)
    with pytest.raises(ValueError, match="not stacked by the 2 experts of a rank"):
        move_experts([torch.zeros(3)], before=BEFORE, after=AFTER, group=group, ledger=Ledger())
    return tensors, ledger.take()[0]


def test_rows_of_all_tensors_move_to_their_new_slots():
    found = run_on_ranks(RANKS, run_moved)
    wanted = torch.tensor([AFTER.expert_slot.index(s) for s in range(EXPERTS)])
    for i, dtype in ((0, torch.float32), (1, torch.bfloat16)):
        moved = torch.cat([tensors[i].flatten(1)[:, 0] for tensors, _ in found])
        assert torch.equal(moved, wanted.to(dtype))
    for rank, (_, sent) in enumerate(found):
        leaving = [
            expert
            for expert in range(EXPERTS)
            if BEFORE.owner(BEFORE.expert_slot[expert]) == rank
            and AFTER.owner(AFTER.expert_slot[expert]) != rank
        ]
        assert sent["ep/move_experts"] == len(leaving) * (3 * 4 + 2)


def test_an_expert_that_stays_on_its_rank_is_sent_to_nobody_else():
    moves = moves_between(BEFORE, AFTER, 0)
    assert sum(len(rows) for rows in moves.outgoing) == EXPERTS // RANKS
    assert sorted(row for rows in moves.incoming for row in rows) == [0, 1]
    same = moves_between(BEFORE, BEFORE, 2)
    assert same.outgoing[2] == same.incoming[2] == (1, 0)
