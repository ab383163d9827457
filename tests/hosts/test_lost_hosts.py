"""Runs over two real hosts: one lives through a cut link, the loss of a host, its return and its
second loss; the other loses its head."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.namespaces import Host, await_nodes, join_ray, why_not
from tests.left import lines

REASON = why_not()

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]

CUT_S = 3.0


@dataclass
class Training:
    """A run on the head, which writes to `folder`."""

    folder: Path
    process: "subprocess.Popen[bytes]"

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in lines(self.folder / "events.jsonl") if e["kind"] == kind]

    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in lines(self.folder / "metrics.jsonl")}

    def step(self) -> int:
        return max(self.losses(), default=0)

    def until(self, what: str, ready: Callable[[], bool], timeout_s: float = 300) -> float:
        """Wait; the seconds it took."""
        began_s = time.monotonic()
        while not ready():
            log = self.folder.with_suffix(".log")
            assert self.process.poll() is None, log.read_text()
            told = [(e["kind"], e["step"]) for e in lines(self.folder / "events.jsonl")]
            assert time.monotonic() - began_s < timeout_s, f"no {what}: {told[-12:]}"
            time.sleep(0.1)
        return time.monotonic() - began_s

    def stop(self) -> int:
        # The process in hand is `ip`, which passes no signals on; exec has made it Python.
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def train(host: Host, folder: Path, name: str, *overrides: str) -> Training:
    words = ["-m", "recipes.cli", "run", "recipes/debug_cpu.yaml", "train.steps=20000"]
    keys = ("checkpoint.interval_steps=0", "recovery.grow_after_s=2", "keep.replica_share=0.2")
    process = host.popen(
        [
            *(sys.executable, *words, *keys, *overrides),
            *(f"run.dir={folder}", f"run.name={name}", f"data.cache_dir={folder}/cache"),
        ],
        folder / f"{name}.log",
    )
    return Training(folder / name, process)


def test_a_run_lives_through_its_hosts_faults(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    head, other = hosts
    run = train(head, tmp_path, "broken", f"cluster.address={head.cluster}")
    run.until("copies on the other host", lambda: bool(run.events("replica_kept")))
    ride_out_a_cut(run, other)
    at = lose_and_go_on_from_memory(run, other)
    take_back(run, head, other)
    leave_alone(run, other)
    assert run.stop() == 143

    # All of it trained what an undisturbed run trains; that one loses its head.
    join_ray(other, head, num_cpus=1)
    await_nodes(head, 2)
    keys = (f"cluster.address={head.cluster}", "checkpoint.interval_steps=20")
    whole = train(head, tmp_path, "whole", *keys)
    whole.until("an undisturbed run", lambda: whole.step() >= at + 50)
    head.kill()
    own, undisturbed = run.losses(), whole.losses()
    assert sorted(own) == [*range(1, max(own) + 1)]
    for step in own.keys() & undisturbed.keys():
        assert own[step] == pytest.approx(undisturbed[step], rel=1e-3)
    nothing_lives_on(other)
    go_on_elsewhere(whole, other)


def ride_out_a_cut(run: Training, other: Host) -> None:
    """A cable that is pulled and put back costs no step."""
    before = run.step()
    other.cut()
    time.sleep(CUT_S)
    other.mend()
    run.until("steps after the cut", lambda: run.step() > before + 100)
    assert not run.events("worker_lost")
    assert not run.events("worker_hung")


def lose_and_go_on_from_memory(run: Training, other: Host) -> int:
    """A lost host costs what was not copied yet, though there is no checkpoint at all; the step
    that the run goes on from."""
    first = run.events("replica_kept")[0]["step"]
    other.kill()
    run.until("shrinking", lambda: len(run.events("layout_changed")) == 1)
    assert run.events("host_lost")[0]["host"] == other.address
    assert run.events("layout_changed")[0]["ranks"] == 1
    run.until("recovery", lambda: bool(run.events("recovered")))
    resumed = run.events("resumed")[-1]
    assert resumed["place"] == "memory"
    assert resumed["step"] > first
    return int(resumed["step"])


def take_back(run: Training, head: Host, other: Host) -> None:
    """A host that returns gets ranks again, and no step is lost by it."""
    join_ray(other, head, num_cpus=1)
    run.until("growing", lambda: len(run.events("layout_changed")) == 2)
    assert run.events("layout_changed")[1]["ranks"] == 2
    run.until("copies again", lambda: len(run.events("replica_kept")) == 2)
    assert run.events("resumed")[-1]["step"] == run.events("regrouped")[-1]["step"]


def leave_alone(run: Training, other: Host) -> None:
    """A host that is lost again gets no more ranks."""
    other.kill()
    run.until("the cordon", lambda: bool(run.events("host_cordoned")))
    run.until("recovery again", lambda: len(run.events("recovered")) == 2)
    reached = run.step()
    run.until("going on", lambda: run.step() > reached)


def nothing_lives_on(host: Host) -> None:
    """Processes of a cluster without its head end by themselves."""
    began_s = time.monotonic()
    while left := host.processes():
        assert time.monotonic() - began_s < 120, f"still there: {left}"
        time.sleep(0.2)


def go_on_elsewhere(run: Training, host: Host) -> None:
    """The same command goes on from the checkpoint."""
    newest = run.step()
    folder, name = run.folder.parent, run.folder.name
    keys = ("cluster.address=local", "cluster.num_workers=1", "run.resume=must")
    after = train(host, folder, name, *keys)
    after.until("going on elsewhere", lambda: after.step() > newest)
    resumed = after.events("resumed")[-1]
    assert resumed["place"] == "disk"
    assert resumed["step"] > newest - 60
    assert after.stop() == 143
