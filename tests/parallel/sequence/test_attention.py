"""Sequence attention is that of one rank, and sends what the formula says."""

import random
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from comms.ledger import Ledger
from parallel.attention import packed_attention
from parallel.sequence.attention import SequenceAttention
from parallel.sequence.communicators import make_communicators
from parallel.sequence.scheme import (
    AttentionScheme,
    attention_bytes,
    padding_multiple,
    token_ranges,
)
from tests.ranks import run_on_ranks

WIDTH = 16
FOUR = [
    AttentionScheme(ulysses=4),
    AttentionScheme(ring=4),
    AttentionScheme(ring=4, backward="queries"),
    AttentionScheme(ring=4, hosts=2),
    AttentionScheme(ring=4, hosts=2, backward="queries"),
    AttentionScheme(ulysses=2, ring=2),
    AttentionScheme(ulysses=2, ring=2, backward="queries"),
    AttentionScheme(ring=2),
    AttentionScheme(ulysses=2),
]
THREE = [
    AttentionScheme(ulysses=3),
    AttentionScheme(ring=3),
    AttentionScheme(ring=3, backward="queries"),
]


def streams(multiple):
    """Document ends: one, odd lengths, many tiny ones, ends on and beside chunk borders."""
    total = 16 * multiple
    generator = random.Random(multiple)
    tiny = sorted({total, *generator.sample(range(1, total), total // 5)})
    borders = (1, total // 8, total // 4 + 1, total // 2 - 1, total // 2, total)
    return [(total,), (total // 3 + 1, total - 7, total), tuple(tiny), borders]


def full_tensors(total, heads, kv_heads, dtype=torch.float32):
    generator = torch.Generator().manual_seed(total)
    shapes = [(total, n, WIDTH) for n in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def with_gradients(attention, tensors, **options):
    """Output and gradients for q, k, v and the gradient of the output."""
    q, k, v = (x.detach().clone().requires_grad_(True) for x in tensors[:3])
    out = attention(q, k, v, **options)
    out.backward(tensors[3].to(out.dtype))
    return [out.detach(), q.grad, k.grad, v.grad]


def held(tensor, total, scheme, position):
    return torch.cat([tensor[a:b] for a, b in token_ranges(total, scheme, position)])


def error(attention, scheme, ends, heads, kv_heads, dtype=torch.float32, window=None):
    """Largest difference from one rank, over the largest value, of output and gradients."""
    total = ends[-1]
    tensors = full_tensors(total, heads, kv_heads, dtype)
    wanted = with_gradients(
        packed_attention, [x.float() for x in tensors], document_ends=ends, window=window
    )
    own = [held(x, total, scheme, attention.position) for x in tensors]
    found = with_gradients(attention, own, document_ends=ends, window=window)
    differences = []
    for got, full in zip(found, wanted, strict=True):
        assert got.dtype == dtype
        want = held(full, total, scheme, attention.position)
        differences.append(((got.float() - want).abs().max() / full.abs().max()).item())
    return max(differences)


def compare_schemes(rank, ranks, schemes, head_counts):
    communicators = make_communicators(range(ranks), [], schemes)
    found = []
    for scheme in schemes:
        ledger = Ledger()
        attention = SequenceAttention(communicators.of(scheme), scheme, ledger=ledger)
        every = streams(padding_multiple(scheme))
        for number, (heads, kv_heads) in enumerate(head_counts):
            # All streams once; with other head counts, one long document or odd lengths.
            for ends in every if number == 0 else every[number % 2 : number % 2 + 1]:
                ledger.take()
                name = f"{scheme}, {heads}:{kv_heads} heads, {len(ends)} documents"
                difference = error(attention, scheme, ends, heads, kv_heads)
                sent = attention_bytes(
                    ends[-1],
                    scheme,
                    num_heads=heads,
                    num_kv_heads=kv_heads,
                    head_dim=WIDTH,
                    element_bytes=4,
                )
                counted = sum(ledger.take()[0].values())
                found.append((name, difference, counted, sent.forward + sent.backward))
    return found


def check(results):
    for found in results:
        assert found
        for name, difference, counted, formula in found:
            assert difference < 2e-6, name
            assert counted == formula, name


@pytest.mark.parametrize("part", [0, 1, 2])
def test_four_ranks_compute_and_send_what_is_said(part):
    heads = [(8, 2), (4, 4), (4, 1), (12, 3)]
    check(run_on_ranks(4, compare_schemes, 4, FOUR[part::3], heads))


def test_three_ranks_compute_and_send_what_is_said():
    check(run_on_ranks(3, compare_schemes, 3, THREE, [(3, 1), (6, 2), (12, 4)]))


def test_one_rank_alone_needs_no_peer():
    check(run_on_ranks(1, compare_schemes, 1, [AttentionScheme()], [(4, 2)]))


def long_document(rank):
    """One document over many tiles of the kernels, and the padding that fills a rank's share."""
    found = []
    for scheme in (AttentionScheme(ring=2), AttentionScheme(ring=2, backward="queries")):
        attention = SequenceAttention(dist.group.WORLD, scheme, ledger=Ledger())
        found += [error(attention, scheme, ends, 2, 1) for ends in ((3000,), (700, 3000))]
    return found


def test_long_documents_and_ranks_with_nothing_but_padding():
    for found in run_on_ranks(2, long_document):
        assert max(found) < 2e-6


def in_half_precision_and_windows(rank):
    communicators = make_communicators(range(4), [2, 4], FOUR)
    found = {}
    for scheme in FOUR:
        attention = SequenceAttention(communicators.of(scheme), scheme, ledger=Ledger())
        ends = streams(padding_multiple(scheme))[1]
        found[str(scheme)] = error(attention, scheme, ends, 8, 4, torch.bfloat16)
    alone = AttentionScheme(ulysses=4)
    attention = SequenceAttention(communicators.whole(4), alone, ledger=Ledger())
    ends = streams(padding_multiple(alone))[1]
    windowed = [error(attention, alone, ends, 8, 2, window=w) for w in (1, 5, 31)]
    return found, windowed


def test_half_precision_and_windows():
    for found, windowed in run_on_ranks(4, in_half_precision_and_windows):
        assert max(found.values()) < 1e-2, found
        assert max(windowed) < 2e-6


def repeat_and_recompute(rank):
    scheme = [AttentionScheme(ring=2), AttentionScheme(ring=2, backward="queries")]
    found = []
    for each in [*scheme, AttentionScheme(ulysses=2)]:
        attention = SequenceAttention(dist.group.WORLD, each, ledger=Ledger())
        ends = (37, 160)
        own = [held(x, 160, each, rank) for x in full_tensors(160, 4, 2)]
        run = partial(with_gradients, tensors=own, document_ends=ends, window=None)
        first, second = run(attention), run(attention)
        again = run(partial(checkpoint, attention, use_reentrant=False))
        found.append(
            [
                all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
                for other in (second, again)
            ]
        )
    return found


def test_same_bits_each_time_and_when_recomputed():
    for found in run_on_ranks(2, repeat_and_recompute):
        assert found == [[True, True]] * 3


def refusals(rank):
    ring, both = AttentionScheme(ring=2), AttentionScheme(ulysses=2)
    world = dist.group.WORLD
    q, k = torch.zeros(8, 3, WIDTH), torch.zeros(8, 1, WIDTH)
    attempts = [
        lambda: SequenceAttention(world, AttentionScheme(ring=3), ledger=Ledger()),
        lambda: SequenceAttention(world, AttentionScheme(ring=2, hosts=2), ledger=Ledger()),
        lambda: SequenceAttention(world, both, ledger=Ledger())(
            q, k, k, document_ends=(16,), window=None
        ),
        lambda: SequenceAttention(world, ring, ledger=Ledger())(
            q, k, k, document_ends=(8,), window=None
        ),
        lambda: SequenceAttention(world, ring, ledger=Ledger())(
            q, k, k, document_ends=(16,), window=4
        ),
        lambda: make_communicators([0, 1], [3], []),
        lambda: make_communicators([1, 0], [2], []),
        lambda: make_communicators([0, 1], [], [ring]).of(both),
    ]
    messages = []
    for attempt in attempts:
        with pytest.raises(ValueError) as raised:  # noqa: PT011 - the messages are compared below
            attempt()
        messages.append(str(raised.value))
    return messages


def test_what_does_not_fit_is_refused_with_a_remedy():
    for messages in run_on_ranks(2, refusals):
        wanted = [
            "takes 3",
            "make_communicators",
            "choose one of [1, 3]",
            "token_ranges",
            "use ulysses=2",
            "choose sizes from [1, 2]",
            "must ascend",
            "exist for ring 2",
        ]
        for message, words in zip(messages, wanted, strict=True):
            assert words in message
