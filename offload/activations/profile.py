"""What a forward saves, and how long it runs in between."""

from collections.abc import Callable

from offload.activations.amount import Scope


class Profile:
    """When forward saved what; a forward begins with the first tensor saved after a backward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_backward = False
        self._begin_s = clock()
        self._saved: list[tuple[int, float]] = []

    @property
    def position(self) -> int:
        """Storages seen in this forward."""
        return len(self._saved)

    def forward(self) -> None:
        """A tensor is being saved."""
        if self._in_backward:
            self._in_backward = False
            self._saved = []
            self._begin_s = self._clock()

    def backward(self) -> None:
        """A tensor is being asked for."""
        self._in_backward = True

    def note(self, num_bytes: int) -> None:
        """A storage was saved for the first time."""
        self._saved.append((num_bytes, self._clock()))

    def scopes(self) -> list[Scope]:
        """The storages of this or the last forward."""
        times = [self._begin_s, *(at for _, at in self._saved)]
        return [
            Scope(saved_bytes=size, forward_s=end - begin)
            for (size, _), begin, end in zip(self._saved, times[:-1], times[1:], strict=True)
        ]
