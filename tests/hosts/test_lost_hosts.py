"""A run over two real hosts lives through a cut link, the loss of a host and its return; when it
loses its head, what the other host had in memory is saved, and the run goes on from that."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from recipes.load import load_recipe
from tests.hosts.namespaces import NEEDS_HOSTS, Host, join_ray
from tests.jobs import start_ranks
from tests.processes import collect
from trainer.keeping.config import KeepingConfig
from trainer.keeping.hold import read_hold
from trainer.run_folder import read_lines

pytestmark = [*NEEDS_HOSTS, pytest.mark.slow, pytest.mark.timeout(900)]

CUT_S = 3.0
STEPS_BEYOND = 40
RECIPE = "recipes/debug_cpu.yaml"


@dataclass
class Training:
    """A run on the head, which writes to `folder`."""

    folder: Path
    process: "subprocess.Popen[bytes]"

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in read_lines(self.folder / "events.jsonl") if e["kind"] == kind]

    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in read_lines(self.folder / "metrics.jsonl")}

    def step(self) -> int:
        return max(self.losses(), default=0)

    def until(self, what: str, ready: Callable[[], bool], timeout_s: float = 300) -> float:
        """Wait; the seconds it took."""
        began_s = time.monotonic()
        while not ready():
            log = self.folder.with_suffix(".log")
            assert self.process.poll() is None, log.read_text()
            told = [(e["kind"], e["step"]) for e in read_lines(self.folder / "events.jsonl")]
            assert time.monotonic() - began_s < timeout_s, f"no {what}: {told[-12:]}"
            time.sleep(0.1)
        return time.monotonic() - began_s

    def stop(self) -> int:
        # The process in hand is `ip`, which passes no signals on; exec has made it Python.
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def overrides(folder: Path, name: str) -> list[str]:
    """No checkpoint is ever due: whatever a run goes on from was in memory."""
    return [
        *("train.steps=20000", "checkpoint.interval_steps=0", "keep.replica_share=0.2"),
        *("recovery.grow_after_s=2", "recovery.rescue_after_s=6"),
        *(f"run.dir={folder}", f"run.name={name}", f"data.cache_dir={folder}/cache"),
    ]


def train(host: Host, folder: Path, name: str, *where: str) -> Training:
    words = [sys.executable, "-m", "recipes.cli", "run", RECIPE]
    process = host.popen([*words, *overrides(folder, name), *where], folder / f"{name}.log")
    return Training(folder / name, process)


def start_undisturbed(folder: Path, steps: int) -> tuple[list[Any], Any]:
    """One rank that nothing happens to, from step 1 on; what `collect` takes."""
    job = load_recipe(RECIPE, overrides(folder, "undisturbed")).recipe.job
    job = replace(job, keep=KeepingConfig(interval_steps=0))
    return start_ranks(job, 1, stop_after=steps)


def test_a_run_lives_through_its_hosts_faults(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    head, other = hosts
    run = train(head, tmp_path, "run", f"cluster.address={head.cluster}")
    run.until("copies on the other host", lambda: bool(run.events("replica_kept")))
    ride_out_a_cut(run, other)
    lose_and_go_on_from_memory(run, other)
    take_back(run, head, other)
    run.until("a copy that is settled", lambda: kept(run, other) > 0)
    copied = kept(run, other)
    # While nothing trains, and on to steps after the last fault.
    undisturbed = start_undisturbed(tmp_path, run.step() + STEPS_BEYOND)
    lose_the_head(run, head, other)
    go_on_elsewhere(run, other, copied)

    # All of it trained what an undisturbed run trains.
    own = run.losses()
    assert sorted(own) == [*range(1, max(own) + 1)]
    _, reports = collect(*undisturbed)[0]
    losses = [own[report.step] for report in reports]
    assert losses == pytest.approx([report.loss for report in reports], rel=1e-3)


def ride_out_a_cut(run: Training, other: Host) -> None:
    """A cable that is pulled and put back costs no step."""
    before = run.step()
    other.cut()
    time.sleep(CUT_S)
    other.mend()
    run.until("steps after the cut", lambda: run.step() > before + 30)
    assert not run.events("worker_lost")
    assert not run.events("worker_hung")


def lose_and_go_on_from_memory(run: Training, other: Host) -> None:
    """A lost host costs what was not copied yet."""
    first = run.events("replica_kept")[0]["step"]
    run.until("a later copy", lambda: kept(run, other) > first)
    copied = kept(run, other)
    other.kill()
    run.until("shrinking", lambda: len(run.events("layout_changed")) == 1)
    assert run.events("host_lost")[0]["host"] == other.address
    assert run.events("layout_changed")[0]["ranks"] == 1
    run.until("recovery", lambda: bool(run.events("recovered")))
    resumed = run.events("resumed")[-1]
    assert resumed["place"] == "memory"
    assert resumed["step"] >= copied


def kept(run: Training, host: Host) -> int:
    """The step of which both hosts have all shares, as one of them knows it."""
    (folder,) = host.memory.glob(f"braid-{run.folder.name}-????????")
    return read_hold(folder).kept


def take_back(run: Training, head: Host, other: Host) -> None:
    """A host that returns gets ranks again, and no step is lost by it."""
    join_ray(other, head, num_cpus=1)
    run.until("growing", lambda: len(run.events("layout_changed")) == 2)
    assert run.events("layout_changed")[1]["ranks"] == 2
    run.until("copies again", lambda: len(run.events("replica_kept")) == 2)
    assert run.events("resumed")[-1]["step"] == run.events("regrouped")[-1]["step"]


def lose_the_head(run: Training, head: Host, other: Host) -> None:
    """The driver, its host and Ray's head are gone without a word. Nobody comes back, so the other
    host saves what it has, before it is lost as well."""
    saved = len(run.events("snapshots_rescued"))
    head.cut()
    head.kill()
    began_s = time.monotonic()
    while len(run.events("snapshots_rescued")) == saved:
        assert time.monotonic() - began_s < 60, "nothing was saved"
        time.sleep(0.1)
    other.kill()


def go_on_elsewhere(run: Training, host: Host, copied: int) -> None:
    """The same command goes on, on another cluster."""
    newest = run.step()
    where = ("cluster.address=local", "cluster.num_workers=1", "run.resume=must")
    after = train(host, run.folder.parent, run.folder.name, *where)
    after.until("going on elsewhere", lambda: after.step() >= newest + STEPS_BEYOND)
    resumed = after.events("resumed")[-1]
    assert Path(resumed["path"]).is_relative_to(run.folder / "rescued")
    assert resumed["step"] >= copied
    assert after.stop() == 143
    assert not (run.folder / "rescued").exists()
