"""Children whose streams neither block nor grow."""

import sys
import time

import pytest

from cluster.rewards.child import TAIL_BYTES, Child, pump


@pytest.fixture
def start():
    children = []

    def begin(script, max_out_bytes=1 << 20):
        child = Child([sys.executable, "-S", "-c", script], {}, max_out_bytes=max_out_bytes)
        children.append(child)
        return child

    yield begin
    for child in children:
        child.kill()


def until(child, condition):
    limit = time.monotonic() + 30
    while not condition() and time.monotonic() < limit:
        pump([child], 0.2)
    assert condition()


def test_more_than_a_pipe_holds_goes_in_and_out(start):
    child = start("import sys; sys.stdout.write(sys.stdin.read())")
    data = b"line\n" * 100_000
    child.send(data, last=True)
    until(child, lambda: child.ended)
    assert child.take_line() == b"line"
    assert len(child.out) == len(data) - 5
    assert child.return_code == 0


def test_output_over_the_limit_is_not_kept(start):
    child = start("while True: print('x' * 1000)", max_out_bytes=5000)
    until(child, lambda: child.overflowed)
    assert len(child.out) < 5000 + 100_000
    assert not child.ended


def test_only_the_end_of_stderr_is_kept(start):
    child = start("import sys; sys.stderr.write('x' * 50_000 + 'the end'); sys.exit(3)")
    until(child, lambda: child.ended)
    assert child.error_text.endswith("the end")
    assert len(child.err_tail) == TAIL_BYTES
    assert child.return_code == 3


def test_a_child_that_does_not_read_does_not_block(start):
    child = start("import time; time.sleep(60)")
    child.send(b"x" * 10_000_000)
    pump([child], 0.01)
    child.kill()
    assert child.return_code == -9


def test_a_child_that_is_gone_takes_no_more(start):
    child = start("pass")
    until(child, lambda: child.ended)
    child.send(b"x" * 1_000_000, last=True)
    assert child.interests() == {}


def test_variables_of_the_parent_are_not_inherited(start, monkeypatch):
    monkeypatch.setenv("SECRET_OF_PARENT", "1")
    child = start("import os; print('SECRET_OF_PARENT' in os.environ)")
    until(child, lambda: child.ended)
    assert child.take_line() == b"False"
