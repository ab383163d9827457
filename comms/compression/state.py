"""What a rank keeps of one flat tensor between steps, and how a step is taken back.

Guarantees, each asserted in tests/comms/compression/test_state.py:
- after `rollback` all values are those of the last `commit`, bitwise;
- reading while a step is under way gives, with `committed`, what the last commit left;
- a value that is written whole costs no copy: two buffers take turns;
- with a `guard`, values of the last commit are not written to before it has returned.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Slot:
    """Named fp32 tensors that belong to one flat gradient. `steps` counts the committed steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.guard: Callable[[], object] | None = None
        """Waits until somebody who reads the values of the last commit has done so."""

        self.values: dict[str, Tensor] = {}
        self._before: dict[str, Tensor | None] = {}
        self._spare: dict[str, Tensor] = {}
        self._written: list[tuple[str, Tensor, Tensor]] = []
        self._open = False

    @property
    def open(self) -> bool:
        """Whether a step has begun that is neither committed nor taken back."""
        return self._open

    def begin(self) -> None:
        """Begin a step. One that was neither committed nor taken back counts as committed."""
        if self._open:
            self.commit()
        self._open = True

    def get(self, name: str, like: Tensor) -> Tensor:
        """The value, zeros shaped as `like` where there is none yet."""
        if name not in self.values:
            self.replace(name, torch.zeros_like(like))
        return self.values[name]

    def buffer(self, name: str, like: Tensor) -> Tensor:
        """Memory for the next value of `name`, to be filled and handed to `replace`."""
        spare = self._spare.pop(name, None)
        if spare is None or spare.shape != like.shape or spare.device != like.device:
            return torch.empty_like(like)
        return spare

    def replace(self, name: str, value: Tensor) -> None:
        """Set the whole value; the caller writes it no more except through this slot."""
        if name not in self._before:
            self._before[name] = self.values.get(name)
        self.values[name] = value

    def keep(self, name: str, value: Tensor) -> None:
        """As `replace`, of a small value: copied to where the one before the last was."""
        self.replace(name, self.buffer(name, value).copy_(value))

    def drop(self, name: str) -> None:
        """Forget the value."""
        if name in self.values:
            self._before.setdefault(name, self.values[name])
            del self.values[name]

    def write(self, name: str, indices: Tensor, values: Tensor) -> None:
        """Set some entries."""
        target = self.values[name]
        if name not in self._before:
            if self.guard is not None:
                self.guard()
            self._written.append((name, indices, target[indices]))
        target[indices] = values

    def commit(self) -> None:
        """Keep what the step wrote."""
        if not self._open:
            return
        self._spare.update({n: t for n, t in self._before.items() if t is not None})
        self._forget()
        self.steps += 1

    def rollback(self) -> None:
        """Restore what was there when the step began."""
        for name, indices, values in reversed(self._written):
            current = self._before.get(name, self.values.get(name))
            if current is not None:
                current[indices] = values
        for name, before in self._before.items():
            if name in self.values:
                self._spare[name] = self.values.pop(name)
            if before is not None:
                self.values[name] = before
        self._forget()

    def committed(self) -> dict[str, Tensor]:
        """Values as of the last commit; those that are partly written now are copies."""
        before = self.values | self._before
        found = {name: value for name, value in before.items() if value is not None}
        for name, indices, values in reversed(self._written):
            found[name] = found[name].clone()
            found[name][indices] = values
        return found

    def _forget(self) -> None:
        self._before.clear()
        self._written.clear()
        self._open = False
