"""SIGTERM and SIGINT: the first asks the run to save and stop, the second ends it at the next look
of the driver, the third wherever the driver is."""

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

        self._again: str | None = None
        self._previous: dict[int, signal.Handlers] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.name is not None

    def check(self, phase: str) -> None:
        """Raise StopRequested if a signal came. For phases in which nothing is to be saved."""
        self.check_insistence()
        if self.requested:
            raise StopRequested(f"stopped by {self.name} while {phase}: no step was under way")

    def check_insistence(self) -> None:
        """Raise EndedAtOnce if a second signal came."""
        if self._again:
            raise EndedAtOnce(f"ended by {self._again} before the run had saved")

    def install(self) -> None:
        """Take the signals over. Call again after a library has taken them."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            previous = signal.signal(number, self._handle)
            self._previous.setdefault(number, previous)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.name = signal.Signals(number).name
        elif not self._again:
            # Not raised here: a library may be in the middle of something that must not be cut off.
            self._again = signal.Signals(number).name
        else:
            self.check_insistence()

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
