"""What the first and the second signal do."""

import os
import signal
import threading

import pytest

from cluster.signals import EndedAtOnce, StopRequested, StopSignals
from trainer.errors import ExitCode


def test_the_first_is_noted_the_second_ends_soon_and_the_third_at_once() -> None:
    with StopSignals() as stop:
        stop.check("placing")
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert stop.name == "SIGTERM"
        with pytest.raises(StopRequested, match="SIGTERM while placing") as caught:
            stop.check("placing")
        assert caught.value.exit_code is ExitCode.STOPPED
        stop.check_insistence()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(EndedAtOnce, match="SIGINT before the run had saved"):
            stop.check_insistence()
        with pytest.raises(EndedAtOnce):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored_though_a_library_took_them_in_between() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def use() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [before]
