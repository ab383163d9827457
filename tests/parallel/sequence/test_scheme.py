"""The choice of a scheme is right everywhere in the table of published byte counts."""

from itertools import product
from math import inf, lcm

import pytest

from parallel.sequence.scheme import (
    AttentionScheme,
    Links,
    attention_bytes,
    choose_scheme,
    possible_schemes,
    predict_attention,
)

TOKENS, WIDTH = 65_536, 128
ONE_HOST = Links(inside_bytes_per_s=1e11, between_bytes_per_s=1e11)
HEADS = [(32, 32), (40, 40), (32, 8), (64, 8), (32, 16), (32, 4), (12, 4), (8, 1)]
DEGREES = [2, 3, 4, 6, 8, 16]


def choose(degree, heads, kv_heads, **changed):
    options = {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": WIDTH,
        "element_bytes": 2,
        "links": ONE_HOST,
        "flops_per_s": inf,
        "windowed": False,
        "ranks_per_host": 64,
    }
    tokens = changed.pop("tokens", TOKENS // degree * degree)
    return choose_scheme(tokens, degree, **(options | changed))


def published_bytes(tokens, scheme, heads, kv_heads, width=WIDTH, element=2):
    """Forward and backward by the table: Ulysses with degree U over S/R chunks, and a ring of R
    with 1/U of the heads. Gradients travel in fp32, one hop less than published."""
    ulysses, ring = scheme.ulysses, scheme.ring
    kv_heads = lcm(kv_heads, ulysses)
    share = tokens / scheme.degree * width
    heads_moved = (ulysses - 1) / ulysses * share * (2 * heads + 2 * kv_heads) * element
    block = tokens / ring
    keys = block * 2 * (kv_heads / ulysses) * width * element
    forward = heads_moved + (ring - 1) * keys
    if scheme.backward == "keys":
        return forward, heads_moved + (ring - 1) * (keys + keys * 4 / element)
    rows = block * heads / ulysses
    hop = rows * width * (2 * element + 4) + 8 * rows
    return forward, heads_moved + (ring - 1) * hop


def every_scheme(degree, heads):
    for ulysses in range(1, degree + 1):
        if degree % ulysses == 0 and heads % ulysses == 0:
            ring = degree // ulysses
            for backward in ("keys", "queries") if ring > 1 else ("keys",):
                yield AttentionScheme(ulysses=ulysses, ring=ring, backward=backward)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("degree", DEGREES)
def test_where_links_are_all_that_counts_the_fewest_bytes_win(heads, kv_heads, degree):
    tokens = 48 * degree
    fewest = min(
        sum(published_bytes(tokens, scheme, heads, kv_heads))
        for scheme in every_scheme(degree, heads)
    )
    chosen, _ = choose(degree, heads, kv_heads, tokens=tokens)
    # Times within a thousandth are equal, and so are bytes when they are all that counts.
    assert sum(published_bytes(tokens, chosen, heads, kv_heads)) <= fewest * 1.001


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("degree", DEGREES)
def test_bytes_are_those_of_the_table(heads, kv_heads, degree):
    tokens = 48 * degree
    for scheme in every_scheme(degree, heads):
        sent = attention_bytes(
            tokens,
            scheme,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=WIDTH,
            element_bytes=2,
        )
        published = published_bytes(tokens, scheme, heads, kv_heads)
        assert (sent.forward, sent.backward) == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "backward"),
    [
        (32, 32, "queries"),  # 7B
        (40, 40, "queries"),  # 14B
        (32, 8, "keys"),  # Llama-3-8B
        (64, 8, "keys"),  # 70B
        (12, 6, "keys"),
        (12, 4, "keys"),
    ],
)
@pytest.mark.parametrize("flops_per_s", [1e12, 2e14, inf])
def test_queries_travel_back_only_where_key_heads_are_many(heads, kv_heads, backward, flops_per_s):
    # Slow links, whether they are hidden or not.
    links = Links(inside_bytes_per_s=2e10, between_bytes_per_s=2e10)
    rings = [
        (sum(published_bytes(7 * 4096, s, heads, kv_heads)), s.backward)
        for s in every_scheme(7, heads)
    ]
    chosen, _ = choose(7, heads, kv_heads, tokens=7 * 4096, flops_per_s=flops_per_s, links=links)
    assert chosen.backward == backward == min(rings)[1]


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (32, 8), (64, 8), (64, 16)])
def test_ulysses_sends_less_forward_above_the_published_crossover(heads, kv_heads):
    for degree in (2, 4, 8):
        ulysses, ring = AttentionScheme(ulysses=degree), AttentionScheme(ring=degree)
        if degree == heads // kv_heads + 1:
            continue
        less = (
            published_bytes(TOKENS, ulysses, heads, kv_heads)[0]
            < published_bytes(TOKENS, ring, heads, kv_heads)[0]
        )
        assert less == (degree > heads / kv_heads + 1)


def test_a_ring_is_exposed_below_the_published_length_and_hidden_above():
    """n >= (key heads / heads) × element bytes × FLOP/s / link bytes/s per rank forward. The
    backward sends 3 times the bytes for 5/2 of the compute: 1.2 times that length."""
    flops_per_s, scheme = 2e14, AttentionScheme(ring=8)
    links = Links(inside_bytes_per_s=25e9, between_bytes_per_s=25e9)
    for heads, kv_heads in [(32, 32), (32, 4)]:
        threshold = kv_heads / heads * 2 * flops_per_s / 25e9
        for factor, hidden in [(1.15, False), (1.25, True)]:
            tokens = int(threshold * factor) // 64 * 64 * 8
            shape = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": WIDTH}
            sent = attention_bytes(tokens, scheme, **shape, element_bytes=2)
            compute_s = 2 * tokens**2 * heads * WIDTH / 8 / flops_per_s
            time = predict_attention(
                sent, scheme, compute_s=compute_s, links=links, ranks_per_host=8
            )
            assert (time.exposed_s < 1e-3 * time.total_s) == hidden


def test_hidden_rings_beat_fewer_exposed_bytes():
    chosen, reason = choose(8, 32, 8, tokens=1 << 20, flops_per_s=2e14)
    assert (chosen.ulysses, chosen.ring) == (1, 8)
    assert "0 ms of it exposed" in reason
    assert "next" in reason


def test_where_nothing_is_hidden_bytes_decide_again():
    links = Links(inside_bytes_per_s=1e11, between_bytes_per_s=1e11, overlap=0.0)
    chosen, _ = choose(8, 32, 32, tokens=1 << 20, flops_per_s=2e14, links=links)
    assert chosen == AttentionScheme(ulysses=8)
    with pytest.raises(ValueError, match=r"overlap must be in \[0, 1\]"):
        Links(inside_bytes_per_s=1e11, between_bytes_per_s=1e11, overlap=2.0)


def test_short_documents_leave_nothing_to_hide_a_ring_behind():
    tokens = 1 << 20
    one, _ = choose(8, 32, 32, tokens=tokens, flops_per_s=2e14)
    many, _ = choose(8, 32, 32, tokens=tokens, flops_per_s=2e14, causal_pairs=tokens * 256)
    assert one.ring == 8
    assert many == AttentionScheme(ulysses=8)


def test_between_hosts_heads_stay_inside_and_blocks_go_over():
    links = Links(inside_bytes_per_s=2e11, between_bytes_per_s=2.5e10)
    chosen, _ = choose(32, 32, 32, links=links, flops_per_s=2e14, ranks_per_host=8)
    assert 1 < chosen.ulysses <= 8
    assert chosen.ring > 1


def test_a_double_ring_is_taken_where_every_rank_has_a_link_of_its_own():
    links = Links(inside_bytes_per_s=2e11, between_bytes_per_s=2e10)
    schemes = possible_schemes(16, num_heads=7, num_kv_heads=1, windowed=False, ranks_per_host=8)
    assert {scheme.hosts for scheme in schemes} == {1, 2}
    chosen, _ = choose(16, 7, 7, links=links, ranks_per_host=8)
    assert chosen.hosts == 2
    shared = Links(inside_bytes_per_s=2e11, between_bytes_per_s=2e10, host_bytes_per_s=2e10)
    chosen, _ = choose(16, 7, 7, links=shared, ranks_per_host=8)
    assert chosen.hosts in (1, 2)
    assert shared.between(8) == 2.5e9


def test_latency_speaks_for_few_messages():
    slow_start = Links(inside_bytes_per_s=1e11, between_bytes_per_s=1e11, latency_s=1e-3)
    chosen, _ = choose(8, 32, 8, links=slow_start, tokens=4096)
    assert chosen == AttentionScheme(ulysses=8)


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 6, 8, 12, 16, 32])
@pytest.mark.parametrize("ranks_per_host", [1, 2, 4, 8])
def test_possible_schemes_fit_degree_heads_and_hosts(degree, ranks_per_host):
    for heads, windowed in product((8, 12, 7), (False, True)):
        schemes = possible_schemes(
            degree,
            num_heads=heads,
            num_kv_heads=1,
            windowed=windowed,
            ranks_per_host=ranks_per_host,
        )
        assert len(set(schemes)) == len(schemes)
        assert schemes or windowed
        for scheme in schemes:
            assert scheme.degree == degree
            assert heads % scheme.ulysses == 0
            assert scheme.ring == 1 or not windowed
            small, large = sorted((scheme.ulysses, ranks_per_host))
            assert degree <= ranks_per_host or large % small == 0


def test_what_no_scheme_serves_is_refused_with_degrees_that_would_do():
    with pytest.raises(ValueError, match=r"8 heads .* choose one of \[1, 2, 4, 8\]"):
        choose(3, 8, 8, windowed=True)
    with pytest.raises(ValueError, match="3 key heads do not divide 8"):
        choose(2, 8, 3)
