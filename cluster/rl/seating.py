"""Which places of a run are for sampling, and how they change hands with the ranks. Pure.

Guarantees, each asserted in tests/cluster/rl/test_seating.py:
- a place belongs to a rank or to sampling, never to both: what is given up for ranks is left first;
- as many sample as is wanted, as soon as there are places;
- places that ranks had go back to ranks first, and places of the reserve are left before one's own;
- places of the reserve, which may not be there, are never left to ranks;
- a place that is had again keeps its seat, and so its log.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.rl.seat import Seat
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
        reserve: Sequence[Seat] = (),
        taken: int = 0,
    ) -> None:
        """`seats` are filled and `reserve` may be, `ranks` train, `make` makes the seat with an
        index in a bundle. Indices up to `taken` are had by these and by others."""
        self._used = list(seats)
        self._free = list(reserve)
        self._by_bundle = {seat.bundle: seat for seat in seats}
        self._own = frozenset(self._by_bundle)
        self._make = make
        self._next_index = taken
        self._ranks = ranks
        self._wanted = len(seats)
        self._before: tuple[int, int] | None = None

    def change(self, split: Split) -> Moves:
        """Begin to have this split. Where ranks give up places, the rest follows with `given`."""
        self._before = (self._ranks, self._wanted)
        more = split.trainers - self._ranks
        self._ranks, self._wanted = split.trainers, split.workers
        leave = self._leave(len(self._used) - split.workers)
        lacking = more - sum(not seat.spare for seat in self._free)
        leave += self._leave(lacking, but_spare=True)
        for_ranks = self._for_ranks(more)
        ranks = split.trainers if more else None
        return Moves(leave=leave, fill=self._fill(), ranks=ranks, for_ranks=for_ranks)

    def given(self, bundles: Sequence[int], *, refused: bool) -> Moves:
        """Ranks gave up these places, or what was wished was refused: then the split is as before,
        and they have taken none."""
        if refused and self._before is not None:
            self._ranks, self._wanted = self._before
        for bundle in bundles:
            seat = self._by_bundle.get(bundle)
            if seat is None:
                seat = self._make(self._next_index, bundle)
                self._next_index += 1
                self._by_bundle[bundle] = seat
            self._free.append(seat)
        return Moves(leave=self._leave(len(self._used) - self._wanted), fill=self._fill())

    def _leave(self, count: int, *, but_spare: bool = False) -> tuple[Seat, ...]:
        """Of the places in use, those of the reserve first, then those of ranks."""
        order = sorted(self._used, key=self._order, reverse=True)
        left = tuple([s for s in order if not (but_spare and s.spare)][: max(0, count)])
        self._used = [seat for seat in self._used if seat not in left]
        self._free += left
        return left

    def _for_ranks(self, count: int) -> tuple[int, ...]:
        order = sorted((s for s in self._free if not s.spare), key=self._order, reverse=True)
        given = order[: max(0, count)]
        self._free = [seat for seat in self._free if seat not in given]
        return tuple(seat.bundle for seat in given)

    def _fill(self) -> tuple[Seat, ...]:
        """Use free places, one's own first, while fewer sample than is wanted."""
        room = max(0, self._wanted - len(self._used))
        filled = tuple(sorted(self._free, key=self._order)[:room])
        self._free = [seat for seat in self._free if seat not in filled]
        self._used += filled
        return filled

    def _order(self, seat: Seat) -> tuple[bool, bool, int]:
        """Places of one's own, then those of ranks, then those of the reserve."""
        return seat.spare, seat.bundle not in self._own, seat.index
