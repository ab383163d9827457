"""A whole run with real actors and small work: endings, failures, stops, deadlines."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.config import ClusterConfig, DeadlineConfig
from cluster.exit_record import record_of_driver
from cluster.launch import fail, succeed
from cluster.reading import Outcome
from cluster.recovery.config import RecoveryConfig
from cluster.run import Run
from cluster.run_lock import held
from cluster.watchdog.config import WatchdogConfig
from tests.cluster.runs import run, when
from trainer.config import JobConfig, RunConfig, TrainConfig
from trainer.errors import ExitCode, RecipeError
from trainer.run_folder import RunFolder

Launch = Callable[..., ExitCode]


@pytest.fixture
def start(local_cluster: None, tmp_path: Path, view: Any) -> Launch:
    """Launch named work of payloads.py in a fresh run folder."""

    def start_work(
        work: str,
        origins: dict[str, str] | None = None,
        resume: str = "auto",
        max_restarts: int = 0,
        **cluster: Any,
    ) -> ExitCode:
        return run(
            JobConfig(run=RunConfig(name="run", dir=str(tmp_path), resume=resume)),
            view,
            ClusterConfig(address="auto", **cluster),
            recovery=RecoveryConfig(max_restarts=max_restarts),
            origins=origins,
            work=f"tests.cluster.payloads:{work}",
        )

    return start_work


def sent(number: signal.Signals) -> Callable[[], None]:
    """To be done later: send this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def exit_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run/exit.json").read_text())
    return record


def free_cpus() -> float:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            break
        time.sleep(0.1)
    return ray.available_resources().get("CPU", 0.0)


def test_a_run_that_finishes(start: Launch, view: Any, tmp_path: Path) -> None:
    assert start("steps") is ExitCode.DONE
    assert view.phases[:4] == ["connecting", "checking", "placing", "starting"]
    assert view.phases[-1] in ("training", "starting")
    assert [record["step"] for record in view.steps] == [1, 2, 3, 4, 5]
    assert view.steps[-1]["eta_s"] == 0.0
    assert view.endings[0]["checkpoint"] == "step-00000005"
    assert exit_record(tmp_path)["code"] == 0
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert [host["rank"] for host in info["hosts"]] == [0, 1]
    assert (tmp_path / "run/recipe.yaml").read_text() == "run: {}\n"
    for rank in (0, 1):
        log = (tmp_path / f"run/logs/worker-{rank}.log").read_text()
        assert f"rank {rank} wrote to its own log" in log
    assert free_cpus() == ray.cluster_resources()["CPU"], "nothing is left on the cluster"


def test_an_error_of_one_rank_ends_all_with_its_code(
    start: Launch, view: Any, tmp_path: Path
) -> None:
    assert start("bad_data") is ExitCode.DATA
    record = exit_record(tmp_path)
    assert record["cause"] == "data/broken.jsonl:7 is not JSON"
    assert (record["rank"], record["phase"], record["step"]) == (1, "training", 1)
    assert any("DataError" in line for line in record["last_lines"])
    assert view.failures[0]["log"].endswith("logs/worker-1.log")
    assert free_cpus() == ray.cluster_resources()["CPU"]


def test_a_killed_process_is_blamed_and_not_its_peer(start: Launch, tmp_path: Path) -> None:
    assert start("killed") is ExitCode.INFRASTRUCTURE
    record = exit_record(tmp_path)
    assert record["rank"] == 1
    assert "killed or it crashed" in record["cause"]
    assert record["last_lines"][-1] == "last words of rank 1"


def test_work_that_cannot_be_imported_is_shown_with_its_traceback(
    start: Launch, tmp_path: Path
) -> None:
    assert start("no_such_work") is ExitCode.INFRASTRUCTURE
    record = exit_record(tmp_path)
    assert record["phase"] == "starting"
    assert any("no_such_work" in line for line in record["last_lines"])


def test_sigterm_saves_and_exits_143(start: Launch, view: Any, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    when(lambda: bool(view.steps), sent(signal.SIGTERM))
    assert start("until_stopped") is ExitCode.STOPPED
    assert view.phases[-1] == "stopping"
    assert view.endings[0]["kind"] == "stopped"
    assert exit_record(tmp_path)["code"] == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stop_before_the_first_step_saves_nothing_and_exits_143(
    start: Launch, view: Any, tmp_path: Path
) -> None:
    when(lambda: "joining" in view.phases, sent(signal.SIGTERM))
    assert start("stuck_joining", stop_grace_s=1000.0) is ExitCode.STOPPED
    record = exit_record(tmp_path)
    assert (record["code"], record["phase"], record["rank"]) == (143, "joining", None)


def test_a_run_that_does_not_save_in_time_is_ended(
    start: Launch, view: Any, tmp_path: Path
) -> None:
    when(lambda: "training" in view.phases, sent(signal.SIGINT))
    assert start("deaf", stop_grace_s=0.5, max_restarts=20) is ExitCode.INFRASTRUCTURE
    assert "not saved within 0.5 s" in exit_record(tmp_path)["cause"]


def test_a_second_signal_ends_at_once(start: Launch, view: Any, tmp_path: Path) -> None:
    when(lambda: "training" in view.phases, sent(signal.SIGINT))
    when(lambda: "stopping" in view.phases, sent(signal.SIGINT))
    assert start("deaf", stop_grace_s=50.0) is ExitCode.INFRASTRUCTURE
    assert "before the run had saved" in exit_record(tmp_path)["cause"]
    assert free_cpus() == ray.cluster_resources()["CPU"]


def test_a_phase_over_its_deadline_names_who_is_late(start: Launch, tmp_path: Path) -> None:
    assert start("stuck_joining", deadlines=DeadlineConfig(joining_s=1.0)) is (
        ExitCode.INFRASTRUCTURE
    )
    record = exit_record(tmp_path)
    assert (record["rank"], record["phase"]) == (1, "joining")
    assert "joining: rank 1 on" in record["cause"]
    assert "cluster.deadlines.joining_s" in record["cause"]


def test_too_few_cores_is_told_before_any_worker(start: Launch, view: Any, tmp_path: Path) -> None:
    assert start("steps", num_workers=1000) is ExitCode.RESOURCES
    assert "need: 1000 workers, each 1 CPU" in view.failures[0]["cause"]
    assert not (tmp_path / "run/logs").exists()


def test_cores_that_others_hold_are_waited_for_and_then_given_up(
    start: Launch, tmp_path: Path
) -> None:
    group = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    assert group.wait(150)
    try:
        code = start("steps", deadlines=DeadlineConfig(placing_s=1.0))
    finally:
        ray.util.remove_placement_group(group)
    assert code is ExitCode.RESOURCES
    assert "cluster.deadlines.placing_s" in exit_record(tmp_path)["cause"]


def test_workers_are_told_their_network_and_the_keys_that_were_set(
    start: Launch, tmp_path: Path
) -> None:
    origins = {"run.project": "r.yaml:1", "train.steps": "r.yaml:2", "train.compile": "default"}
    assert start("environment", origins=origins) is ExitCode.DONE
    log = (tmp_path / "run/logs/worker-1.log").read_text()
    assert "GLOO_SOCKET_IFNAME=lo" in log
    assert "RAY_AUTH_MODE=token" in log
    assert "explicit=['train.steps'] project=braid" in log


def test_a_used_folder_is_refused_and_left_alone(tmp_path: Path, view: Any) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1}\n')
    job = JobConfig(run=RunConfig(name="run", dir=str(tmp_path), resume="never"))
    with pytest.raises(RecipeError, match="already holds"):
        run(job, view, ClusterConfig())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_a_folder_with_a_driver_is_refused(start: Launch, tmp_path: Path) -> None:
    with held(RunFolder(tmp_path / "run")), pytest.raises(RecipeError, match="another driver"):
        start("steps")
    assert start("no_such_work") is ExitCode.INFRASTRUCTURE
    assert start("steps") is ExitCode.DONE, "released after a failure"


def test_a_disk_that_refuses_ends_with_code_and_message(
    start: Launch, view: Any, tmp_path: Path
) -> None:
    # A folder where a file belongs is refused for root too.
    (tmp_path / "run/run.json").mkdir(parents=True)
    (tmp_path / "run/events.jsonl").mkdir()
    assert start("steps") is ExitCode.RESOURCES
    assert "run.json" in view.failures[0]["cause"]
    assert "run.dir" in view.failures[0]["cause"]
    assert "events.jsonl" in view.warnings[0]
    assert exit_record(tmp_path)["code"] == 3


def test_an_ending_that_cannot_be_recorded_keeps_its_code(view: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (folder.exit / "x").mkdir(parents=True)
    outcome = Outcome(kind="finished", step=1, checkpoint=None)
    run = Run(
        job=JobConfig(),
        cluster=ClusterConfig(),
        watchdog=WatchdogConfig(),
        recovery=RecoveryConfig(),
        origins={},
        folder=folder,
        work="",
    )
    assert succeed(outcome, run, view, elapsed_s=1.0) is ExitCode.DONE
    assert "exit.json" in view.warnings[0]
    record = record_of_driver(RecipeError("why"), "checking", now_s=0.0)
    assert fail(record, run, view) is ExitCode.RECIPE
    assert view.failures[0]["cause"] == "why"
    assert len(view.warnings) == 2


def complete(folder: Path, step: int) -> Path:
    path = folder / f"run/checkpoints/step-{step:08d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    return path


def test_a_run_with_all_steps_done_says_so_in_its_record(tmp_path: Path, view: Any) -> None:
    complete(tmp_path, 5)
    job = JobConfig(
        run=RunConfig(name="run", dir=str(tmp_path), resume="auto"), train=TrainConfig(steps=5)
    )
    assert run(job, view, ClusterConfig()) is ExitCode.DONE
    record = exit_record(tmp_path)
    assert (record["code"], record["cause"], record["step"]) == (0, "finished", 5)


def test_a_return_to_an_older_step_trains(start: Launch, view: Any, tmp_path: Path) -> None:
    older = complete(tmp_path, 3)
    complete(tmp_path, 10**6)
    assert start("steps", resume=str(older)) is ExitCode.DONE
    assert len(view.steps) == 5


def test_the_driver_imports_no_torch() -> None:
    code = (
        "import sys, cluster.launch; assert 'ray' not in sys.modules;"
        "import cluster.session, cluster.submit; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
