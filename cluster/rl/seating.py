"""Which places of a run are for sampling, and how they change hands with the ranks. Pure.

Guarantees, each asserted in tests/cluster/rl/test_seating.py:
- a place belongs to a rank or to sampling, never to both: what is given up for ranks is left first;
- as many sample as is wanted, as soon as there are places;
- places that ranks had go back to ranks first, and places of the reserve are left before one's own;
- a place that is had again keeps its seat, and so its log.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.rl.rollouts import Seat
from trainer.rl.conducting.split import Split


@dataclass(frozen=True, kw_only=True)
class Moves:
    """To be done in this order."""

    leave: tuple[Seat, ...] = ()
    fill: tuple[Seat, ...] = ()
    ranks: int | None = None
    """How many shall train; None where it is as many as before."""

    for_ranks: tuple[int, ...] = ()
    """Bundles that are left to them."""


class Seating:
    """The seats of those who sample in places of their own. One thread calls it."""

    def __init__(
        self,
        seats: Sequence[Seat],
        *,
        ranks: int,
        make: Callable[[int, int], Seat],
        taken: int = 0,
    ) -> None:
        """`seats` are filled, `ranks` train, `make` makes the seat with an index in a bundle.
        Indices from `len(seats)` to `taken` more are others'."""
        self._used = list(seats)
        self._free: list[Seat] = []
        self._by_bundle = {seat.bundle: seat for seat in seats}
        self._own = frozenset(self._by_bundle)
        self._make = make
        self._next_index = len(seats) + taken
        self._ranks = ranks
        self._wanted = len(seats)
        self._before: tuple[int, int] | None = None

    def change(self, split: Split) -> Moves:
        """Begin to have this split. Where ranks give up places, the rest follows with `given`."""
        self._before = (self._ranks, self._wanted)
        more = split.trainers - self._ranks
        self._ranks, self._wanted = split.trainers, split.workers
        leave = self._leave(len(self._used) - split.workers)
        for_ranks = self._for_ranks(more)
        ranks = split.trainers if more else None
        return Moves(leave=leave, fill=self._fill(), ranks=ranks, for_ranks=for_ranks)

    def given(self, bundles: Sequence[int], *, refused: bool) -> Moves:
        """Ranks gave up these places, or did not take them: then the split is as before."""
        if refused and self._before is not None:
            self._ranks, self._wanted = self._before
        for bundle in bundles:
            seat = self._by_bundle.get(bundle)
            if seat is None:
                seat = self._make(self._next_index, bundle)
                self._next_index += 1
                self._by_bundle[bundle] = seat
            self._free.append(seat)
        return Moves(fill=self._fill())

    def _leave(self, count: int) -> tuple[Seat, ...]:
        """Of the places in use, those of ranks first."""
        order = sorted(self._used, key=lambda seat: (seat.bundle in self._own, -seat.index))
        left = tuple(order[: max(0, count)])
        self._used = [seat for seat in self._used if seat not in left]
        self._free += left
        return left

    def _for_ranks(self, count: int) -> tuple[int, ...]:
        order = sorted(self._free, key=lambda seat: (seat.bundle in self._own, -seat.index))
        given = order[: max(0, count)]
        self._free = [seat for seat in self._free if seat not in given]
        return tuple(seat.bundle for seat in given)

    def _fill(self) -> tuple[Seat, ...]:
        """Use free places, one's own first, while fewer sample than is wanted."""
        room = max(0, self._wanted - len(self._used))
        order = sorted(self._free, key=lambda seat: (seat.bundle not in self._own, seat.index))
        filled = tuple(order[:room])
        self._free = [seat for seat in self._free if seat not in filled]
        self._used += filled
        return filled
