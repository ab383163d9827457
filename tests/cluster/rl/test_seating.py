"""The guarantees of cluster/rl/seating.py."""

import random
from collections.abc import Sequence
from dataclasses import replace

from cluster.rl.seat import Seat
from cluster.rl.seating import Moves, Seating
from trainer.rl.conducting.split import Split

RANKS, WORKERS = 3, 2
OWN = (3, 4)
"""Bundles; those before are ranks'."""


def seat(index: int, bundle: int) -> Seat:
    return Seat(index=index, bundle=bundle, cpus=1, gpus=0, memory_bytes=0)


def seating(reserve: Sequence[Seat] = ()) -> Seating:
    seats = [seat(index, bundle) for index, bundle in enumerate(OWN)]
    return Seating(seats, ranks=RANKS, make=seat, reserve=reserve, taken=3)


def split(trainers: int, workers: int) -> Split:
    return Split(trainers=trainers, workers=workers)


def bundles(seats: tuple[Seat, ...]) -> list[int]:
    return [one.bundle for one in seats]


def test_ranks_give_up_places_and_have_them_again_first() -> None:
    made = seating()
    moves = made.change(split(1, 4))
    assert moves == Moves(ranks=1)
    filled = made.given([1, 2], refused=False)
    assert [(one.index, one.bundle) for one in filled.fill] == [(3, 1), (4, 2)]
    moves = made.change(split(4, 1))
    # The places of ranks, and then one of sampling's own.
    assert bundles(moves.leave) == [2, 1, 4]
    assert moves.for_ranks == (2, 1, 4)
    assert (moves.ranks, moves.fill) == (4, ())
    made.change(split(2, 3))
    assert [(s.index, s.bundle) for s in made.given([4, 1], refused=False).fill] == [(1, 4), (3, 1)]


def test_what_ranks_did_not_take_is_filled_again() -> None:
    made = seating()
    assert made.change(split(4, 1)).for_ranks == (4,)
    assert bundles(made.given([4], refused=True).fill) == [4]
    # As if nothing had been: the same wish leads to the same.
    assert made.change(split(4, 1)).for_ranks == (4,)


def test_workers_change_alone_without_a_word_to_the_ranks() -> None:
    made = seating()
    moves = made.change(split(RANKS, 1))
    assert (bundles(moves.leave), moves.ranks, moves.for_ranks) == ([4], None, ())
    moves = made.change(split(RANKS, 2))
    assert (bundles(moves.fill), moves.ranks) == ([4], None)


def test_the_reserve_is_taken_last_left_first_and_never_by_ranks() -> None:
    spare = [replace(seat(2 + n, -1), spare=True) for n in range(2)]
    made = seating(spare)
    moves = made.change(split(RANKS, 4))
    assert moves == Moves(fill=tuple(spare))
    # Where there is no room for it, things are as they were.
    assert made.given([], refused=True).leave == (spare[1], spare[0])
    assert made.change(split(RANKS, 3)).fill == (spare[0],)
    moves = made.change(split(RANKS + 1, 1))
    assert (moves.leave[0], bundles(moves.leave[1:]), moves.for_ranks) == (spare[0], [4], (4,))
    moves = seating(spare[:1]).change(split(RANKS + 1, 2))
    assert (bundles(moves.leave), moves.fill, moves.for_ranks) == ([4], (spare[0],), (4,))


def test_no_place_is_ever_had_by_two_and_as_many_sample_as_is_wanted() -> None:
    chance = random.Random(0)
    made = seating()
    ranks, sampling = set(range(RANKS)), set(OWN)
    for _ in range(300):
        trainers = chance.randint(1, 4)
        wanted = split(trainers, chance.randint(1, 5 - trainers))
        before = set(ranks)
        moves = made.change(wanted)
        sampling -= set(bundles(moves.leave))
        assert not sampling & set(moves.for_ranks)
        if chance.random() < 0.2 and moves.for_ranks:
            then = made.given(moves.for_ranks, refused=True)
            ranks = before
        else:
            ranks |= set(moves.for_ranks)
            left = sorted(ranks)[wanted.trainers :]
            ranks -= set(left)
            then = made.given(left, refused=False)
            assert len(ranks) == wanted.trainers
        sampling |= set(bundles(moves.fill))
        now = [*(sampling - set(bundles(then.leave))), *bundles(then.fill)]
        assert len(now) == len(set(now))
        sampling = set(now)
        assert not sampling & ranks
        if ranks != before or not moves.for_ranks:
            assert len(sampling) == wanted.workers
