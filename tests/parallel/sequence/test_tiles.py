"""Own parts and rectangles are all causal pairs inside documents, each once."""

import random
from itertools import pairwise

import pytest

from parallel.sequence.stretches import AttentionScheme, padding_multiple, token_ranges
from parallel.sequence.tiles import ring_tiles


def packings(ring):
    """Document ends of a few streams: one document, tiny ones, random ones."""
    generator = random.Random(ring)
    total = 4 * padding_multiple(AttentionScheme(ring=ring))
    yield (total,)
    yield tuple(range(1, total + 1))
    for _ in range(20):
        count = generator.randrange(1, total // 2)
        yield tuple(sorted({total, *generator.sample(range(1, total), count)}))


def causal_pairs(ends):
    return sorted(
        (query, key)
        for start, end in zip((0, *ends), ends, strict=False)
        for query in range(start, end)
        for key in range(start, query + 1)
    )


def tokens_of(ends, ring, block):
    ranges = token_ranges(ends[-1], AttentionScheme(ring=ring), block)
    return [token for start, stop in ranges for token in range(start, stop)]


def covered(tiles, q_tokens, k_tokens):
    for tile in tiles:
        assert tile.q_start < tile.q_stop
        assert tile.k_start < tile.k_stop
        for query in q_tokens[tile.q_start : tile.q_stop]:
            for key in k_tokens[tile.k_start : tile.k_stop]:
                yield query, key


@pytest.mark.parametrize("ring", [2, 3, 4])
@pytest.mark.parametrize("side", ["own_queries", "own_keys"])
def test_every_causal_pair_is_covered_once(ring, side):
    for ends in packings(ring):
        held = [tokens_of(ends, ring, block) for block in range(ring)]
        found = []
        for block in range(ring):
            tiles = ring_tiles(ends, ring, block)
            for start, end in zip((0, *tiles.own_ends), tiles.own_ends, strict=False):
                own = held[block][start:end]
                found += [(q, k) for at, q in enumerate(own) for k in own[: at + 1]]
            for other in set(range(ring)) - {block}:
                if side == "own_queries":
                    found += covered(tiles.own_queries[other], held[block], held[other])
                else:
                    found += covered(tiles.own_keys[other], held[other], held[block])
        assert sorted(found) == causal_pairs(ends)


@pytest.mark.parametrize("ring", [2, 3, 4, 8])
def test_one_document_is_one_rectangle_between_any_two_blocks(ring):
    total = 4 * ring
    for block in range(ring):
        tiles = ring_tiles((total,), ring, block)
        assert tiles.own_ends == (total // ring,)
        for other in set(range(ring)) - {block}:
            assert len(tiles.own_queries[other]) == 1
            assert len(tiles.own_keys[other]) == 1


def test_rectangles_that_make_one_do_not_stay_apart():
    for ends in packings(4):
        for block in range(4):
            tiles = ring_tiles(ends, 4, block)
            for between in (*tiles.own_queries, *tiles.own_keys):
                for a, b in pairwise(between):
                    rows, keys = a.q_start == b.q_start, a.k_start == b.k_start
                    same_rows = rows and a.q_stop == b.q_stop and a.k_stop == b.k_start
                    same_keys = keys and a.k_stop == b.k_stop and a.q_stop == b.q_start
                    assert not same_rows
                    assert not same_keys
