"""What the end of a worker means."""

import pytest

from cluster.rewards.worker import HOME, fault_of_exit, import_path
from trainer.rl.rewards.outcome import FaultKind


@pytest.mark.parametrize(
    ("code", "text", "kind", "says"),
    [
        (-9, "", FaultKind.MEMORY, "killed from outside"),
        (1, "Traceback\nMemoryError", FaultKind.MEMORY, "ran out of memory"),
        (-6, "terminate called: std::bad_alloc", FaultKind.MEMORY, "ran out of memory"),
        (-11, "", FaultKind.EXITED, "ended by SIGSEGV"),
        (1, "Traceback\nmine.Odd: what", FaultKind.RAISED, "mine.Odd: what"),
        (3, "", FaultKind.EXITED, "exited with code 3"),
        (0, "", FaultKind.EXITED, "exited with code 0"),
    ],
)
def test_exits_have_reasons(code, text, kind, says):
    fault = fault_of_exit(code, text)
    assert fault.kind is kind
    assert says in fault.reason


def test_workers_import_their_own_package_first(tmp_path):
    path = import_path([str(tmp_path), HOME])["PYTHONPATH"].split(":")
    assert path == [HOME, str(tmp_path)]
