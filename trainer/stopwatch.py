"""Seconds between marks, on the host's clock or the device's."""

import time
from collections.abc import Callable

import torch


class Stopwatch:
    """Marks of one step. On CUDA they are events, so that marking does not wait for the device."""

    def __init__(
        self, device: torch.device, on_mark: Callable[[str], None] = lambda name: None
    ) -> None:
        self._on_mark = on_mark
        self._cuda = device.type == "cuda"
        self._marks: dict[str, float | torch.cuda.Event] = {}

    def mark(self, name: str) -> None:
        """Remember now as `name`, in the order of the device's work, and tell `on_mark`."""
        self._on_mark(name)
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks[name] = event
        else:
            self._marks[name] = time.perf_counter()

    def seconds(self, begin: str, end: str) -> float:
        """Seconds from one mark to the other; 0 where one is missing. On CUDA the device must
        have passed both, else this waits for it."""
        first, last = self._marks.get(begin), self._marks.get(end)
        if first is None or last is None:
            return 0.0
        if isinstance(first, float) and isinstance(last, float):
            return last - first
        assert isinstance(first, torch.cuda.Event)
        assert isinstance(last, torch.cuda.Event)
        last.synchronize()
        return first.elapsed_time(last) / 1000.0
