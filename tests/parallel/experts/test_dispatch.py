"""What `parallel/experts/dispatch.py` guarantees."""

import pytest
import torch
import torch.distributed as dist

from comms.ledger import Ledger
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.hosts import host_groups
from tests.ranks import run_on_ranks
from trainer.model.experts import grouped_swiglu

EXPERTS, WIDTH, INNER = 8, 16, 12


def stacked():
    generator = torch.Generator().manual_seed(0)
    shapes = ((EXPERTS, WIDTH, 2 * INNER), (EXPERTS, INNER, WIDTH))
    return [torch.randn(shape, generator=generator) / 4 for shape in shapes]


def counts_of(kind, rank):
    """Rows of `rank` for every expert."""
    if kind == "uneven":
        generator = torch.Generator().manual_seed(rank)
        return torch.randint(0, 7, (EXPERTS,), generator=generator)
    counts = torch.zeros(EXPERTS, dtype=torch.int64)
    if kind == "one expert":
        counts[5] = 9 + rank
    if kind == "one rank alone has rows" and rank == 1:
        counts[2] = 4
    return counts


KINDS = ["uneven", "one expert", "one rank alone has rows", "no rows at all"]


def rows_of(counts, rank):
    generator = torch.Generator().manual_seed(100 + rank)
    shape = (int(counts.sum()), WIDTH)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def one_rank(kind, ranks):
    """All rows with all experts: results, row gradients and weight gradients."""
    counts = [counts_of(kind, rank) for rank in range(ranks)]
    rows = [rows_of(c, rank) for rank, c in enumerate(counts)]
    weights = [w.requires_grad_(True) for w in stacked()]
    parts = [
        [x.split(c.tolist()) for c, (x, _) in zip(counts, rows, strict=True)],
        [g.split(c.tolist()) for c, (_, g) in zip(counts, rows, strict=True)],
    ]
    sorted_x, sorted_g = (
        torch.cat([part[r][e] for e in range(EXPERTS) for r in range(ranks)]) for part in parts
    )
    sorted_x.requires_grad_(True)
    y = grouped_swiglu(sorted_x, torch.stack(counts).sum(0), *weights)
    grads = torch.autograd.grad(y, (sorted_x, *weights), sorted_g)
    sizes = [int(counts[r][e]) for e in range(EXPERTS) for r in range(ranks)]

    def of_rank(values, rank):
        chunks = values.split(sizes)
        return torch.cat([chunks[e * ranks + rank] for e in range(EXPERTS)])

    outputs = [(of_rank(y, r), of_rank(grads[0], r)) for r in range(ranks)]
    return [(a.detach(), b) for a, b in outputs], grads[1:]


def dispatched(dispatch, kind, dtype=torch.float32):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    counts = counts_of(kind, rank)
    x, upstream = (t.to(dtype) for t in rows_of(counts, rank))
    x.requires_grad_(True)
    held = slice(rank * EXPERTS // ranks, (rank + 1) * EXPERTS // ranks)
    weights = [w[held].to(dtype).requires_grad_(True) for w in stacked()]
    y = dispatch.run(x, counts, lambda rows, own: grouped_swiglu(rows, own, *weights))
    grads = torch.autograd.grad(y, (x, *weights), upstream)
    return y.detach(), *grads


def all_kinds(rank, ranks_per_host):
    ledger = Ledger()
    ranks = dist.get_world_size()
    hosts = host_groups([range(ranks)], ranks_per_host=ranks_per_host)
    dispatch = ExpertDispatch(dist.group.WORLD, num_experts=EXPERTS, ledger=ledger, hosts=hosts)
    found = {kind: (dispatched(dispatch, kind), ledger.take()[0]) for kind in KINDS}
    found["half precision"] = (dispatched(dispatch, "uneven", torch.bfloat16), ledger.take()[0])
    return found


@pytest.mark.parametrize(("ranks", "ranks_per_host"), [(1, 1), (2, 2), (4, 4), (4, 2)])
def test_results_and_gradients_are_those_of_one_rank(ranks, ranks_per_host):
    found = run_on_ranks(ranks, all_kinds, ranks_per_host)
    each = EXPERTS // ranks
    for kind in KINDS:
        wanted, weight_grads = one_rank(kind, ranks)
        for rank, result in enumerate(found):
            y, x_grad, *own_grads = result[kind][0]
            assert torch.equal(y, wanted[rank][0])
            assert torch.equal(x_grad, wanted[rank][1])
            for own, whole in zip(own_grads, weight_grads, strict=True):
                assert torch.equal(own, whole[rank * each : (rank + 1) * each])


def elsewhere(kind, rank, ranks, wanted):
    """Rows of `rank` whose expert is held by a rank for which `wanted` is true."""
    counts, each = counts_of(kind, rank).tolist(), EXPERTS // ranks
    return sum(n for e, n in enumerate(counts) if wanted(e // each))


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_rows_that_go_to_other_ranks(kind, four):
    for rank, (one, two) in enumerate(four):
        row_bytes = WIDTH * 4
        away = elsewhere(kind, rank, 4, lambda d, rank=rank: d != rank)
        came = [elsewhere(kind, r, 4, lambda d, rank=rank: d == rank) for r in range(4)]
        back = sum(came) - came[rank]
        # Out, home, and both again for the gradients.
        assert one[kind][1]["ep/all_to_all"] == 2 * (away + back) * row_bytes
        assert one[kind][1]["ep/all_to_all_counts"] == 3 * EXPERTS // 4 * 8
        assert "ep/all_to_all" not in two[kind][1]


def test_between_hosts_only_rows_for_the_other_host_travel(four):
    for kind in KINDS:
        sent = sum(two[kind][1]["ep/all_to_all_between_hosts"] for _, two in four)
        crossing = sum(
            elsewhere(kind, rank, 4, lambda d, rank=rank: d // 2 != rank // 2) for rank in range(4)
        )
        assert sent == 4 * crossing * WIDTH * 4


def test_half_precision_halves_the_bytes_and_stays_bitwise(four):
    for one, two in four:
        assert 2 * one["half precision"][1]["ep/all_to_all"] == one["uneven"][1]["ep/all_to_all"]
        for a, b in zip(one["half precision"][0], two["half precision"][0], strict=True):
            assert torch.equal(a, b)


def one_and_two_stages(rank):
    return all_kinds(rank, 4), all_kinds(rank, 2)


@pytest.fixture(scope="module")
def four():
    return run_on_ranks(4, one_and_two_stages)


def refused(rank):
    with pytest.raises(ValueError, match=r"ep=2 does not divide num_experts=9.*\[1, 3, 9\]"):
        ExpertDispatch(dist.group.WORLD, num_experts=9, ledger=Ledger())
    with pytest.raises(ValueError, match="multiples of 2"):
        host_groups([range(3)], ranks_per_host=2)
    return True


def test_what_cannot_be_spread_is_refused_with_what_can():
    assert run_on_ranks(2, refused) == [True, True]
