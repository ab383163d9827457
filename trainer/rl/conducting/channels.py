"""When a channel for weights is opened anew, and by whom. Pure; time is an argument.

Guarantees, each asserted in tests/trainer/rl/conducting/test_channels.py:
- one opening is under way at a time: who comes meanwhile is taken up once by the next;
- an opening that misses a member is not waited for: another one takes its place;
- no prefix is used twice, and the members are all workers that are up then, the trainers first;
- after failures in a row the next opening waits, twice as long each time, up to a minute;
- where the store is lost, the channel is opened anew at the next one;
- what is said of an earlier channel changes nothing.
"""

from collections.abc import Sequence
from math import inf

from trainer.rl.messages import ChannelPlace

_SETTLE_S = 0.5
"""Workers that start together shall be in one channel."""

_LONGEST_PAUSE_S = 60.0

_NOTICE_S = 5.0
"""In which the others should notice what one member does."""


def trainer_names(trainers: int) -> tuple[str, ...]:
    """As in the places of channels."""
    return tuple(f"trainer {rank}" for rank in range(trainers))


class Channels:
    """The channels of one run, one after the other."""

    def __init__(self, store: tuple[str, int], *, opened: int = 0) -> None:
        """`opened` is how many there were before."""
        self._store = store
        self.opened = opened
        self.place: ChannelPlace | None = None
        self._opening = False
        self._due_s = inf
        self._failures = 0

    @property
    def members(self) -> tuple[str, ...]:
        """Workers of the present channel."""
        return () if self.place is None else self.place.names[self.place.trainers :]

    def is_present(self, prefix: str) -> bool:
        """Whether a message is of the present channel; an empty prefix is."""
        return self.place is not None and prefix in ("", self.place.prefix)

    def joined(self, now_s: float, *, all_up: bool) -> None:
        """A worker came up; `all_up` where no other is expected."""
        self._want(now_s if all_up else now_s + _SETTLE_S)

    def left(self, worker: str, now_s: float) -> None:
        """A worker is gone. Who waits for it stops once another channel is asked for."""
        if worker in self.members:
            self._opening = False
            self._want(now_s)

    def moved(self, store: tuple[str, int], now_s: float) -> None:
        """Another store took the place of one that was lost, and of the channel with it."""
        self._store, self._opening = store, False
        if self.place is not None:
            self._want(now_s)

    def published(self, prefix: str) -> None:
        """All members have a version."""
        if self.is_present(prefix):
            self._opening, self._failures = False, 0

    def failed(self, prefix: str, now_s: float) -> None:
        """Its members could not open it, or not exchange a version."""
        if self.is_present(prefix):
            self._opening = False
            pause_s = min(2.0**self._failures, _LONGEST_PAUSE_S) if self._failures else 0.0
            self._failures += 1
            self._want(now_s + pause_s)

    def doubted(self, now_s: float) -> None:
        """A member has left it, and perhaps nobody else has noticed."""
        self._want(now_s + _NOTICE_S)

    def lost(self) -> None:
        """The trainers are gone, and the channel with them."""
        self.place, self._opening, self._due_s = None, False, inf

    def ready(self, now_s: float) -> None:
        """Trainers are there, whatever was before."""
        self.lost()
        self._failures = 0
        self._want(now_s)

    def open(self, trainers: int, workers: Sequence[str], now_s: float) -> ChannelPlace | None:
        """The channel to open now; None where there is nothing to do, or it must wait."""
        if self._opening or not workers or now_s < self._due_s:
            return None
        host, port = self._store
        self.place = ChannelPlace(
            host=host,
            port=port,
            prefix=f"weights/{self.opened}",
            names=(*trainer_names(trainers), *workers),
            trainers=trainers,
        )
        self.opened += 1
        self._opening, self._due_s = True, inf
        return self.place

    def _want(self, at_s: float) -> None:
        # A pause after a failure is kept, also where somebody comes or goes meanwhile.
        waits = self._due_s != inf and self._failures > 1
        self._due_s = max(self._due_s, at_s) if waits else at_s
