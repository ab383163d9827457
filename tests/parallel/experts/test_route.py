"""What `parallel/experts/route.py` guarantees, with ranks that are lists."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel.experts.route import Hosts, Regroup, RowPlan, direct_plan, staged_plan, transposed


def split(values, sizes):
    chunks, start = [], 0
    for size in sizes:
        chunks.append(values[start : start + size])
        start += size
    assert start == len(values)
    return chunks


def exchange(group, outgoing, sent, received):
    """All-to-all of lists between the ranks of `group`, which must agree about sizes."""
    parts = {r: split(outgoing[r], sent[r]) for r in group}
    for i, r in enumerate(group):
        assert tuple(received[r]) == tuple(len(parts[q][i]) for q in group)
    return {r: [row for q in group for row in parts[q][i]] for i, r in enumerate(group)}


def regrouped(regroup, values):
    return regroup.apply(torch.tensor(values, dtype=torch.int64)).tolist()


def travel(plans: list[RowPlan], rows, groups_of_hop):
    """Rows of all ranks, carried as their plans say."""
    at = dict(enumerate(rows))
    for hop, groups in enumerate(groups_of_hop):
        at = {r: regrouped(plans[r].hops[hop].before, values) for r, values in at.items()}
        landed = {}
        for group in groups:
            sent = {r: plans[r].hops[hop].sent for r in group}
            received = {r: plans[r].hops[hop].received for r in group}
            landed |= exchange(group, at, sent, received)
        at = landed
    return [regrouped(plans[r].final, values) for r, values in sorted(at.items())]


def direct(counts, slots):
    ranks, starts = len(slots), [sum(slots[:r]) for r in range(len(slots) + 1)]
    told = [[c for r in range(ranks) for c in counts[r][a:b]] for a, b in pairwise(starts)]
    return [direct_plan(counts[r], told[r], slots) for r in range(ranks)]


def staged(counts, slots, hosts):
    ranks = len(slots)
    starts = [sum(slots[:r]) for r in range(ranks)]

    def to(source, destination):
        first = starts[destination]
        return counts[source][first : first + slots[destination]]

    plans = []
    for rank in range(ranks):
        neighbours = next(host for host in hosts.ranks if rank in host)
        local = neighbours.index(rank)
        twins = hosts.place(local)
        gathered = [c for s in neighbours for d in twins for c in to(s, d)]
        arrived = [c for s in hosts.sources(local) for c in to(s, rank)]
        plans.append(staged_plan(counts[rank], gathered, arrived, slots, hosts=hosts, local=local))
    return plans


@st.composite
def situations(draw):
    hosts, local_ranks = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2), (3, 2), (2, 3)]))
    slots = [draw(st.integers(1, 3)) for _ in range(hosts * local_ranks)]
    some = st.lists(st.integers(0, 4), min_size=sum(slots), max_size=sum(slots))
    ranks = draw(st.permutations(range(hosts * local_ranks)))
    together = [tuple(sorted(ranks[h * local_ranks : (h + 1) * local_ranks])) for h in range(hosts)]
    return Hosts(tuple(together)), slots, [draw(some) for _ in slots]


@given(situations())
def test_rows_arrive_once_sorted_by_slot_and_origin_in_one_stage_and_in_two(situation):
    hosts, slots, counts = situation
    ranks = len(slots)
    # A row's number says its slot, where it comes from and its place there.
    rows = [
        [slot * 10_000 + rank * 100 + i for slot, n in enumerate(counts[rank]) for i in range(n)]
        for rank in range(ranks)
    ]
    everything = sorted(row for own in rows for row in own)
    starts = [sum(slots[:r]) for r in range(ranks + 1)]
    wanted = [
        [row for row in everything if starts[r] <= row // 10_000 < starts[r + 1]]
        for r in range(ranks)
    ]
    everybody = list(range(ranks))
    between = [hosts.place(local) for local in range(hosts.local_ranks)]
    one, two = direct(counts, slots), staged(counts, slots, hosts)
    assert travel(one, rows, [[everybody]]) == wanted
    assert travel(two, rows, [hosts.ranks, between]) == wanted
    for rank in range(ranks):
        assert one[rank].slot_rows == two[rank].slot_rows
        own = range(starts[rank], starts[rank + 1])
        assert list(one[rank].slot_rows) == [sum(c[slot] for c in counts) for slot in own]


def test_regrouping_is_undone_by_its_inverse():
    regroup = Regroup((2, 0, 3, 1, 1, 2), transposed(2, 3))
    rows = torch.arange(9)
    assert regroup.apply(rows).tolist() == [0, 1, 5, 6, 2, 3, 4, 7, 8]
    assert torch.equal(regroup.inverse(regroup.apply(rows)), rows)


@pytest.mark.parametrize("shape", [(2, 3, 1), (3, 2, 2), (1, 4, 1)])
def test_transposed_is_that_of_a_matrix_of_chunks(shape):
    rows, columns, inner = shape
    cells = torch.arange(rows * columns * inner).view(shape)
    assert transposed(*shape) == tuple(cells.transpose(0, 1).flatten().tolist())
