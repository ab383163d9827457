"""Whether a part of the tokens gives the bits that all of them gave."""

from collections.abc import Sequence

import torch
from torch import Tensor

MIN_CHECKED_ELEMENTS = 1 << 14
"""Fewer recomputed elements may be equal by chance."""


MAX_VERDICTS = 1 << 12
"""Shapes remembered; where streams differ in length, every step brings new ones."""

Key = tuple[object, ...]


class RowCheck:
    """Whether fewer rows give the same bits, found by doing it once per shape.

    A run is known by its inputs when it begins, and by what it saved when it is over.
    """

    def __init__(self) -> None:
        self._settled: set[Key] = set()
        self._verdicts: dict[Key, bool] = {}

    def wants_originals(self, inputs: Key) -> bool:
        """Whether a run with such inputs should hold on to what it saves, to be compared."""
        return inputs not in self._settled

    def known(self, inputs: Key, saved: Key) -> bool:
        """Whether this run was checked. If not, the next with such inputs should be."""
        found = (inputs, saved) in self._verdicts
        if not found:
            self._settled.discard(inputs)
        return found

    def rows_suffice(self, inputs: Key, saved: Key) -> bool:
        """What the check found; no where there was none."""
        return self._verdicts.get((inputs, saved), False)

    def note(self, inputs: Key, saved: Key, *, rows_suffice: bool) -> None:
        """Remember what a check found."""
        if len(self._verdicts) >= MAX_VERDICTS:
            self._verdicts.clear()
            self._settled.clear()
        self._verdicts[inputs, saved] = rows_suffice
        self._settled.add(inputs)


class Comparison:
    """Whether recomputed rows are those of forward."""

    def __init__(self, originals: Sequence[Tensor | None], swapped_rows: int) -> None:
        self._originals = originals
        self._swapped_rows = swapped_rows
        self.equal = True
        self.elements = 0

    def take(self, saved: int | None, output: int | None, tensor: Tensor, first: int) -> None:
        """Compare one tensor."""
        original = None if saved is None else self._originals[saved]
        if original is None:
            return
        mine, theirs = tensor.detach()[self._swapped_rows - first :], original[self._swapped_rows :]
        # Not a numerical comparison: NaN is equal to itself here, and the two zeros differ.
        same = mine.shape == theirs.shape and torch.equal(
            mine.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8)
        )
        self.equal = self.equal and same
        self.elements += mine.numel()


class Autocast:
    """The autocast state of forward, for a backward that runs on another thread."""

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._enabled = torch.is_autocast_enabled(device_type)
        self._dtype = torch.get_autocast_dtype(device_type)

    def restored(self) -> torch.autocast:
        """A context in which it holds again."""
        return torch.autocast(self._device_type, dtype=self._dtype, enabled=self._enabled)
