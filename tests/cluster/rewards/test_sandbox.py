"""What a confined process can and cannot do, tried out in one."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.rewards.confined import NEEDS_CONFINEMENT

ATTEMPTS = """
import ctypes, json, os, resource, socket, subprocess, sys, threading
from pathlib import Path
from cluster.rewards.sandbox import Limits, confine
other, file = int(sys.argv[1]), sys.argv[2]
limits = Limits(memory_bytes=1 << 30, cpu_s=60)
held = confine(limits, parent_pid=os.getppid())
libc = ctypes.CDLL(None, use_errno=True)

def thread():
    done = []
    worker = threading.Thread(target=done.append, args=(1,))
    worker.start()
    worker.join()
    assert done

def raw(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

attempts = {
    "tcp": lambda: socket.create_connection(("127.0.0.1", 9), 1),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "raw_socket": lambda: raw("socket", 2, 1, 0),
    "pair": socket.socketpair,
    "fork": os.fork,
    "raw_fork": lambda: raw("fork"),
    "program": lambda: subprocess.run(["true"]),
    "exec": lambda: os.execv(sys.executable, [sys.executable, "-V"]),
    "kill": lambda: os.kill(other, 9),
    "ptrace": lambda: raw("ptrace", 16, other, 0, 0),
    "write": lambda: open(file, "w"),
    "append": lambda: open(file, "a"),
    "make": lambda: open(file + ".new", "x"),
    "delete": lambda: os.unlink(file),
    "rename": lambda: os.rename(file, file + ".old"),
    "truncate": lambda: os.truncate(file, 0),
    "chmod": lambda: os.chmod(file, 0o777),
    "folder": lambda: os.mkdir(file + ".d"),
    "memory_limit": lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29)),
    "limit_of_other": lambda: resource.prlimit(other, resource.RLIMIT_CPU, (1, 1)),
    "namespace": lambda: raw("unshare", 0x10000000),
    "memory": lambda: bytearray(2 << 30),
    "variables_of_other": lambda: Path(f"/proc/{other}/environ").read_bytes(),
    "read": lambda: Path(file).read_text(),
    "thread": thread,
    "list": lambda: os.listdir(os.path.dirname(file)),
    "limits": lambda: resource.getrlimit(resource.RLIMIT_AS),
    "standard_library": lambda: __import__("decimal").Decimal(2).sqrt(),
    "libraries": lambda: __import__("numpy").ones((64, 64)) @ __import__("numpy").ones((64, 64)),
}
found = {"filtered": held.filtered, "own_namespaces": held.own_namespaces}
for name, attempt in attempts.items():
    try:
        attempt()
        found[name] = "done"
    except (OSError, MemoryError, ValueError) as error:
        found[name] = type(error).__name__
print(json.dumps(found))
"""
ALLOWED = ["read", "thread", "list", "limits", "standard_library", "libraries"]
BY_NAMESPACE = ["variables_of_other"]

pytestmark = NEEDS_CONFINEMENT


@pytest.fixture(scope="module")
def confined(tmp_path_factory):
    file = tmp_path_factory.mktemp("confined") / "kept.txt"
    file.write_text("kept")
    with subprocess.Popen(["sleep", "60"]) as other:
        run = subprocess.run(
            [sys.executable, "-c", ATTEMPTS, str(other.pid), str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        alive = other.poll() is None
        other.kill()
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), file, alive


def test_the_filter_is_on(confined):
    assert confined[0]["filtered"] is True


def test_nothing_outside_can_be_changed(confined):
    found, file, alive = confined
    refused = found.keys() - {"filtered", "own_namespaces", *ALLOWED, *BY_NAMESPACE}
    expected = dict.fromkeys(refused, "PermissionError")
    # The address space is bounded, and Python words a refused limit its own way.
    expected |= {"memory": "MemoryError"}
    assert found | {"memory_limit": "PermissionError"} == found | expected
    assert found["memory_limit"] in ("PermissionError", "ValueError")
    assert file.read_text() == "kept"
    assert [path.name for path in file.parent.iterdir()] == ["kept.txt"]
    assert alive


def test_computing_and_reading_work(confined):
    assert {name: confined[0][name] for name in ALLOWED} == dict.fromkeys(ALLOWED, "done")


def test_in_namespaces_of_its_own_it_cannot_look_into_other_processes(confined):
    if not confined[0]["own_namespaces"]:
        pytest.skip("this system lets users make no namespaces")
    assert confined[0]["variables_of_other"] == "PermissionError"


ORPHAN = """
import os, subprocess, sys
inner = '''
import os, sys, time
from cluster.rewards.sandbox import Limits, confine
confine(Limits(memory_bytes=1 << 30), parent_pid=os.getppid())
print(os.getpid(), flush=True)
time.sleep(60)
'''
child = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE)
print(child.stdout.readline().decode(), flush=True)
os._exit(0)
"""


def test_it_dies_with_its_parent():
    run = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, check=True)
    status = Path(f"/proc/{int(run.stdout)}/status")
    until = time.monotonic() + 20
    while _runs(status) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _runs(status)


def test_a_process_whose_parent_is_gone_does_not_start():
    script = (
        "from cluster.rewards.sandbox import Limits, confine\n"
        "confine(Limits(memory_bytes=1 << 30), parent_pid=-1)\n"
        "print('ran')"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (run.returncode, run.stdout) == (1, b"")


def _runs(status):
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
