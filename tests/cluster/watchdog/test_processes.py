"""cluster/watchdog/processes.py on real processes that share one core."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cluster.watchdog.processes import thread_times
from cluster.watchdog.starved import Starvation

SPINS = """
import os
os.sched_setaffinity(0, [int(sorted(os.sched_getaffinity(0))[0])])
print("ready", flush=True)
while True: pass
"""


def starved_share(process: subprocess.Popen[bytes], looks: int) -> float:
    starvation, began_s = Starvation(), time.monotonic()
    for look in range(looks):
        if look:
            time.sleep(0.1)
        now_s = time.monotonic()
        starvation.add(now_s, thread_times(process.pid))
    return starvation.total_s / (now_s - began_s)


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="needs schedstat")
def test_processes_that_share_a_core_starve_and_one_that_is_stopped_does_not():
    command = [sys.executable, "-c", SPINS]
    spinning = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for process in spinning:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        # Two thirds of the time, and more where others use the core as well.
        assert 0.3 < starved_share(spinning[0], 11) < 1.3
        spinning[0].send_signal(signal.SIGSTOP)
        # It waits for the core once more, to stop.
        while psutil.Process(spinning[0].pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        assert starved_share(spinning[0], 6) < 0.1
    finally:
        for process in spinning:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def test_a_process_that_is_gone_has_no_threads():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert thread_times(process.pid) == {}
