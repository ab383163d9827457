"""Sequence groups of a layout's pools are found in every rank's own group, and counted."""

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
