"""Sequence groups of a layout's pools are found in every rank's own group, and counted."""

from dataclasses import replace

import torch

from comms.ledger import Ledger
from comms.volume import all_reduce_bytes
from parallel.attention import packed_attention
from parallel.layout import Layout
from parallel.pool import open_pool
from parallel.sequence.stretches import AttentionScheme, token_ranges
from tests.ranks import run_on_ranks

SCHEMES = [AttentionScheme(), AttentionScheme(ulysses=2), AttentionScheme(ring=2)]
ENDS = (5, 12, 16)


def _stream() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(16, 4, 8, generator=generator) for _ in range(3))


def _attend(rank: int, layout: Layout) -> list:
    ledger = Ledger()
    pool = open_pool(layout, rank=rank, schemes=SCHEMES, ledger=ledger)
    assert pool.attention(AttentionScheme()) is packed_attention
    assert pool.sum_over(1) is None
    found = []
    for scheme in SCHEMES[1:]:
        position = layout.data_rank(rank) % 2
        held = [slice(*s) for s in token_ranges(16, scheme, position)]
        mine = [torch.cat([x[piece] for piece in held]) for x in _stream()]
        out = pool.attention(scheme)(*mine, document_ends=ENDS, window=None)
        whole = packed_attention(*_stream(), document_ends=ENDS, window=None)
        torch.testing.assert_close(out, torch.cat([whole[piece] for piece in held]))
        assert pool.attention(scheme) is pool.attention(scheme)
    ledger.take()
    total = pool.sum_over(2)
    assert total is not None
    found.append(float(total(torch.tensor(float(rank)))))
    found.append(ledger.take()[0])
    return found


def _attend_in_order(rank: int) -> float:
    """Largest difference that the order of a ring makes, gradients included."""
    ledger, layout = Ledger(), Layout(shard=4)
    schemes = [AttentionScheme(ring=4), AttentionScheme(ring=4, hosts=2)]
    schemes += [replace(scheme, backward="queries") for scheme in schemes]
    pool = open_pool(layout, rank=rank, schemes=schemes, ledger=ledger)
    differences = []
    for scheme in schemes:
        held = [slice(*s) for s in token_ranges(16, scheme, rank)]
        found = []
        # A double ring of two hosts has one order, whatever is asked for.
        for order in ((0, 1, 2, 3), (0, 2, 3, 1)):
            pool.order_rings(lambda ranks, order=order: tuple(p for p in order if p < len(ranks)))
            mine = [torch.cat([x[piece] for piece in held]) for x in _stream()]
            leaves = [x.requires_grad_() for x in mine]
            out = pool.attention(scheme)(*leaves, document_ends=ENDS, window=None)
            out.square().sum().backward()
            found.append([out.detach(), *(leaf.grad for leaf in leaves)])
        differences += [(a - b).abs().max() for a, b in zip(*found, strict=True)]
    return float(torch.stack(differences).max())


def test_the_order_of_a_ring_changes_no_more_than_the_order_of_sums():
    assert max(run_on_ranks(4, _attend_in_order)) < 1e-5


def test_each_rank_works_in_its_own_group_of_its_own_pool():
    for layout, partners in (
        (Layout(shard=4), {0: 1, 1: 1, 2: 5, 3: 5}),
        # Ranks 0 and 2 see other tokens than each other, 1 and 3 the same as these.
        (Layout(replica=2, tp=2), {0: 2, 1: 4, 2: 2, 3: 4}),
    ):
        results = run_on_ranks(4, _attend, layout)
        for rank, (total, sent) in enumerate(results):
            assert total == partners[rank]
            assert sent == {"sp/all_reduce": all_reduce_bytes(4, 2)}
