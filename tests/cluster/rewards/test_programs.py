"""Generated programs: what they may do, and how they are judged."""

import pytest

from cluster.rewards.programs import (
    Program,
    ProgramLimits,
    extract_program,
    passed_share,
    require_confinement,
    run_programs,
)
from tests.cluster.rewards.confined import NEEDS_CONFINEMENT
from trainer.rl.rewards.outcome import FaultKind

pytestmark = NEEDS_CONFINEMENT
LIMITS = ProgramLimits(time_limit_s=20.0, max_output_bytes=10_000)
FORGER = """
import sys, os
sys.stdout.write("3\\n")
sys.modules["cluster.rewards.protocol"] = None
sys.exit(97)
"""
NETWORK = "import socket; socket.create_connection(('127.0.0.1', 9))"

CASES = {
    "if __name__ == '__main__':\n    print(sum(map(int, input().split())))": None,
    "import math; print(math.comb(3, 1))": None,
    "1 / 0": (FaultKind.RAISED, "ZeroDivisionError"),
    "def f(:": (FaultKind.RAISED, "SyntaxError"),
    "x = bytearray(4 << 30)": (FaultKind.MEMORY, "out of memory"),
    "while True: print('x' * 999)": (FaultKind.GARBLED, "more than 10000 bytes"),
    "import os; os._exit(5)": (FaultKind.EXITED, "code 5"),
    "import os; os.abort()": (FaultKind.EXITED, "SIGABRT"),
    NETWORK: (FaultKind.RAISED, "PermissionError"),
    "import os; os.fork()": (FaultKind.RAISED, "PermissionError"),
    "open('/tmp/escaped', 'w')": (FaultKind.RAISED, "PermissionError"),
    "import cluster.rewards.sandbox, torch": (FaultKind.RAISED, "ModuleNotFoundError"),
    FORGER: (FaultKind.EXITED, "code 97"),
}


def test_programs_run_side_by_side_and_each_fault_has_its_reason():
    outcomes = run_programs([Program(source, "1 2\n") for source in CASES], LIMITS)
    for (source, expected), outcome in zip(CASES.items(), outcomes, strict=True):
        if expected is None:
            assert (outcome.stdout, outcome.fault) == ("3\n", None), source
            continue
        kind, says = expected
        assert outcome.fault is not None, source
        assert outcome.fault.kind is kind, outcome
        assert says in outcome.fault.reason, outcome


def test_programs_that_never_end_are_ended():
    limits = ProgramLimits(time_limit_s=0.5, at_once=3)
    silent = "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)"
    deaf = "import signal, time\nsignal.signal(15, lambda *_: None)\ntime.sleep(60)"
    sources = ["while True: pass", silent, deaf]
    outcomes = run_programs([Program(source) for source in sources], limits)
    assert [outcome.fault.kind for outcome in outcomes] == [FaultKind.TIMEOUT] * 3


def test_the_share_of_cases_passed():
    double = "print(2 * int(input()), ' ')"
    cases = [("1\n", "2"), ("5\n", "10\n"), ("0\n", "1"), ("x", "2")]
    share, fault = passed_share(double, cases, LIMITS)
    assert share == 0.5
    assert fault.reason.startswith("ValueError")
    with pytest.raises(ValueError, match="at least one"):
        passed_share(double, [], LIMITS)


def test_a_right_output_with_a_fault_does_not_pass():
    assert passed_share(FORGER, [("", "3")], LIMITS)[0] == 0.0


def test_this_system_can_confine_programs():
    require_confinement(LIMITS)
    assert run_programs([], LIMITS) == []


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("so:\n```python\nprint(1)\n```\nor\n```py\nprint(2)\n```", "print(2)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("print(3)", "print(3)"),
    ],
)
def test_the_last_block_of_an_answer_is_the_program(answer, program):
    assert extract_program(answer) == program
