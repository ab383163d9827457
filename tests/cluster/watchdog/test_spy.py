"""cluster/watchdog/spy.py and processes.py on real processes."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.watchdog import spy
from cluster.watchdog.processes import process_state
from cluster.watchdog.stacks import threads

SLEEPER = """
import sys, time
from pathlib import Path
def held_up():
    print("ready", flush=True)
    time.sleep(60)
if len(sys.argv) > 1:
    from cluster.watchdog.spy import answer_signals
    file = answer_signals(Path(sys.argv[1]))

held_up()
"""
REPOSITORY = Path(__file__).parents[3]


@contextmanager
def sleeper(*arguments: str) -> Iterator[int]:
    command = [sys.executable, "-c", SLEEPER, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()


def until(pid: int, state: str) -> str:
    end_s = time.monotonic() + 10
    while process_state(pid) != state and time.monotonic() < end_s:
        time.sleep(0.01)
    return process_state(pid)


def without_spy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_states_of_a_process_from_running_to_gone():
    with sleeper() as pid:
        assert until(pid, "sleeping") == "sleeping"
        psutil.Process(pid).suspend()
        assert until(pid, "stopped") == "stopped"
        psutil.Process(pid).send_signal(signal.SIGKILL)
        assert until(pid, "zombie") == "zombie"
    assert process_state(pid) == "gone"


def test_without_py_spy_the_process_writes_its_stacks(tmp_path, monkeypatch):
    answers = tmp_path / "stacks.txt"
    with sleeper(str(answers)) as pid:
        without_spy(monkeypatch)
        first = spy.dump_stacks(pid, answers=answers)
        second = spy.dump_stacks(pid, answers=answers)
    for dump in (first, second):
        assert "held_up (<string>)" in threads(dump.text)[-1].frames
        assert dump.note.startswith("faulthandler, since py-spy is not installed")


def test_a_process_that_would_die_of_the_signal_is_not_asked(tmp_path, monkeypatch):
    answers = tmp_path / "stacks.txt"
    answers.touch()
    with sleeper() as pid:
        without_spy(monkeypatch)
        dump = spy.dump_stacks(pid, answers=answers)
        assert dump.text == ""
        assert "does not answer signals" in dump.note
        assert psutil.Process(pid).is_running()


def test_a_stopped_process_cannot_answer_and_the_limit_holds(tmp_path, monkeypatch):
    answers = tmp_path / "stacks.txt"
    with sleeper(str(answers)) as pid:
        without_spy(monkeypatch)
        psutil.Process(pid).suspend()
        dump = spy.dump_stacks(pid, answers=answers, limit_s=0.3)
    assert dump.text == ""
    assert "did not answer a signal within 0.3 s" in dump.note


def test_py_spy_reads_running_and_stopped_processes():
    if spy.find_spy() is None:
        pytest.skip("py-spy is not installed")
    with sleeper() as pid:
        running = spy.dump_stacks(pid, limit_s=50.0)
        if not running.text:
            pytest.skip(f"no right to trace: {running.note}")
        psutil.Process(pid).suspend()
        until(pid, "stopped")
        stopped = spy.dump_stacks(pid, limit_s=50.0)
    assert running.note == "py-spy --native"
    assert stopped.note == "py-spy --nonblocking"
    for dump in (running, stopped):
        assert "held_up (<string>)" in threads(dump.text)[0].frames


def test_py_spy_says_why_a_process_has_no_stacks():
    if spy.find_spy() is None:
        pytest.skip("py-spy is not installed")
    with sleeper() as pid:
        pass
    dump = spy.dump_stacks(pid)
    assert dump.text == ""
    assert dump.note.startswith("py-spy: ")
