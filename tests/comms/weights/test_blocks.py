"""The guarantees of comms/weights/blocks.py on random blocks."""

import random
from itertools import product

from comms.weights.blocks import Block, regions, split

Cell = tuple[int, ...]


def cells(block: Block) -> list[Cell]:
    """The elements of a block."""
    spans = [range(first, first + size) for first, size in zip(*block, strict=True)]
    return list(product(*spans))


def random_block(chance: random.Random, shape: tuple[int, ...]) -> Block:
    offsets = tuple(chance.randrange(size) for size in shape)
    sizes = tuple(
        chance.randint(0 if chance.random() < 0.1 else 1, size - first)
        for first, size in zip(offsets, shape, strict=True)
    )
    return Block(offsets, sizes)


def test_regions_cover_what_is_taken_once_and_have_one_set_of_owners_each():
    chance = random.Random(0)
    for _ in range(150):
        shape = tuple(chance.randint(1, 5) for _ in range(chance.randint(0, 3)))
        gives = {r: [random_block(chance, shape) for _ in range(2)] for r in range(3)}
        takes = {r: [random_block(chance, shape)] for r in range(3, 6)}

        def owners(held: dict[int, list[Block]], cell: Cell) -> tuple[int, ...]:
            return tuple(r for r, blocks in held.items() if any(cell in cells(b) for b in blocks))

        found: list[Cell] = []
        for region in regions(gives, takes):
            for cell in cells(region.block):
                assert region.givers == owners(gives, cell)
                assert region.takers == owners(takes, cell)
            found += cells(region.block)
        wanted = {cell for blocks in takes.values() for block in blocks for cell in cells(block)}
        assert sorted(found) == sorted(wanted)


def test_rows_against_columns_are_as_few_regions_as_can_be():
    rows = {r: [Block((4 * r, 0), (4, 8))] for r in range(2)}
    columns = {2 + r: [Block((0, 2 * r), (8, 2))] for r in range(4)}
    assert len(regions(rows, columns)) == 8
    whole = {9: [Block((0, 0), (8, 8))]}
    assert len(regions(rows, whole)) == 2
    assert len(regions(whole, {1: [Block((0, 0), (8, 8))], 2: [Block((0, 0), (8, 8))]})) == 1


def test_parts_cover_a_block_once_and_are_small_enough():
    chance = random.Random(1)
    for _ in range(100):
        shape = tuple(chance.randint(1, 6) for _ in range(chance.randint(0, 3)))
        most = chance.randint(1, 20)
        block = Block(tuple(chance.randrange(9) for _ in shape), shape)
        parts = list(split(block, most))
        assert sorted(cell for part in parts for cell in cells(part)) == sorted(cells(block))
        assert max(part.elements for part in parts) <= most
        assert all(part.inside(block) for part in parts)


def test_inside():
    assert Block((1, 1), (2, 2)).inside(Block((0, 0), (3, 3)))
    assert not Block((1, 1), (2, 3)).inside(Block((0, 0), (3, 3)))
    assert Block((), ()).inside(Block((), ()))
