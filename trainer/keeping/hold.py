"""Steps that stay in memory while they travel to other hosts, and the slots they are kept in.

Who copies shares says in a file which step comes next and which one lies whole on the other hosts;
ranks write that step to a slot of its own, and its copying has time until the next one is wanted.
Neither torch nor ray.

Guarantees, each asserted in tests/trainer/keeping/test_hold.py:
- the last snapshot is never written over by the next one, wherever each of them lies;
- the kept step stays in its slot until another one is kept, however many steps follow;
- without a wish, or without slots for it, snapshots take turns over the ordinary slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RESERVED_SLOTS = 2
"""One for the step that all hosts have, one for the step that is on its way."""

_FILE = "hold"
_NONE = -1


@dataclass(frozen=True)
class Hold:
    """Steps by number; -1 for none."""

    wanted: int = _NONE
    """The next one to keep."""

    kept: int = _NONE
    """The one of which other hosts have whole copies."""


def read_hold(folder: Path) -> Hold:
    """What is wanted of the ranks of this host."""
    try:
        wanted, kept = (folder / _FILE).read_text().split()
        return Hold(int(wanted), int(kept))
    except (OSError, ValueError):
        return Hold()


def write_hold(folder: Path, hold: Hold) -> None:
    """Replace it as a whole. Raises OSError where the folder is not there or full."""
    aside = folder / f".{_FILE}"
    aside.write_text(f"{hold.wanted} {hold.kept}")
    aside.replace(folder / _FILE)


class Rotation:
    """Which slot the next snapshot goes to."""

    def __init__(self, slots: int, reserved: int) -> None:
        self._ordinary = slots
        self._steps = [_NONE] * (slots + reserved)
        self._turn = 0
        self._last = _NONE

    def next(self, step: int, hold: Hold) -> int:
        """The slot for `step`, which is later than all before it."""
        slot = self._reserved(hold) if step == hold.wanted else None
        if slot is None:
            slot = self._turn % self._ordinary
            self._turn += 1
        self._steps[slot] = step
        self._last = slot
        return slot

    @property
    def steps(self) -> Sequence[int]:
        """What was written last to each slot."""
        return tuple(self._steps)

    def _reserved(self, hold: Hold) -> int | None:
        for slot in range(self._ordinary, len(self._steps)):
            if slot != self._last and (self._steps[slot] != hold.kept or hold.kept == _NONE):
                return slot
        return None
