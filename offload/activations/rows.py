"""Whether a part of the tokens gives the bits that all of them gave."""

from collections.abc import Sequence

import torch
from torch import Tensor

MIN_CHECKED_ELEMENTS = 1 << 14
"""Fewer recomputed elements may be equal by chance."""


class RowCheck:
    """Whether fewer rows give the same bits, found by doing it once per shape."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[object, ...], bool] = {}

    def known(self, key: tuple[object, ...]) -> bool:
        """Whether `key` was checked."""
        return key in self._verdicts

    def rows_suffice(self, key: tuple[object, ...]) -> bool:
        """What the check found; no where there was none."""
        return self._verdicts.get(key, False)

    def note(self, key: tuple[object, ...], *, rows_suffice: bool) -> None:
        """Remember what a check found."""
        self._verdicts[key] = rows_suffice


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
