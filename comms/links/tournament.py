"""Pure: in which rounds all pairs of places meet, every place in one pair at a time.

Guarantees, each asserted in tests/comms/links/test_tournament.py:
- every pair meets exactly once;
- no place is in two pairs of a round;
- there are n - 1 rounds for an even number of places and n for an odd one, the fewest possible.
"""


def rounds(places: int) -> list[list[tuple[int, int]]]:
    """The circle method: one place stays, the others move around a table."""
    seats = list(range(places + places % 2))
    found = []
    for _ in range(len(seats) - 1):
        pairs = zip(seats[: len(seats) // 2], reversed(seats), strict=False)
        # An odd number of places leaves one of them without a partner in each round.
        found.append([(min(p), max(p)) for p in pairs if max(p) < places])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return found


def opponent(pairs: list[tuple[int, int]], place: int) -> int | None:
    """Whom `place` meets in a round, if anyone."""
    for a, b in pairs:
        if place in (a, b):
            return b if place == a else a
    return None
