"""SIGTERM and SIGINT: the first asks the run to save and stop, the second ends it at once."""

import signal
import threading
from types import FrameType, TracebackType

from trainer.errors import BraidError, ExitCode

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequested(BraidError):
    """The run was asked to stop before there was anything to save."""

    exit_code = ExitCode.STOPPED


class EndedAtOnce(BraidError):
    """A second signal came while the run was saving."""

    exit_code = ExitCode.INFRASTRUCTURE


class StopSignals:
    """Handlers for the time of a run, as a context. Outside the main thread it never stops."""

    def __init__(self) -> None:
        self.name: str | None = None
        """The first signal that came."""

        self._previous: dict[int, signal.Handlers] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.name is not None

    def check(self, phase: str) -> None:
        """Raise StopRequested if a signal came. For phases in which nothing is to be saved."""
        if self.requested:
            raise StopRequested(f"stopped by {self.name} while {phase}, before training began")

    def install(self) -> None:
        """Take the signals over. Call again after a library has taken them."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            previous = signal.signal(number, self._handle)
            self._previous.setdefault(number, previous)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise EndedAtOnce(f"ended by {signal.Signals(number).name} before the run had saved")
        self.name = signal.Signals(number).name

    def __enter__(self) -> "StopSignals":
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
