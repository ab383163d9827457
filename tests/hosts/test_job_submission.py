"""Submitted runs over two real hosts: training, stopping, and the loss of a host."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hosts.namespaces import DASHBOARD, GCS_PORT, NEEDS_HOSTS, Host
from trainer.run_folder import read_lines

pytestmark = [*NEEDS_HOSTS, pytest.mark.slow, pytest.mark.timeout(300)]


def submission(folder: Path, name: str, *overrides: str) -> list[str]:
    words = ["-m", "recipes.cli", "submit", "recipes/debug_cpu.yaml", "--address", DASHBOARD]
    return [
        *(sys.executable, *words),
        f"run.dir={folder}",
        f"run.name={name}",
        f"data.cache_dir={folder}/cache",
        *overrides,
    ]


def wait_for_steps(folder: Path, count: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while len(read_lines(folder / "metrics.jsonl")) < count:
        assert not (folder / "exit.json").exists(), (folder / "exit.json").read_text()
        assert time.monotonic() < deadline, f"no {count} steps within {timeout_s} s"
        time.sleep(0.2)


def test_a_submitted_run_trains_over_both_hosts(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    done = hosts[0].run(submission(tmp_path, "both"), timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    info = json.loads((tmp_path / "both/run.json").read_text())
    assert [host["address"] for host in info["hosts"]] == [host.address for host in hosts]
    assert [record["step"] for record in read_lines(tmp_path / "both/metrics.jsonl")] == [
        *range(1, 9)
    ]
    record = json.loads((tmp_path / "both/exit.json").read_text())
    assert (record["code"], record["step"]) == (0, 8)
    assert "working directory:" in done.stdout
    assert "phase: training" in done.stdout


def with_token(host: Host, text: str | None, folder: Path) -> Host:
    """The same host for someone whose token is another, or who has none."""
    variables = dict(host.variables) | {"HOME": str(folder)}
    del variables["RAY_AUTH_TOKEN_PATH"]
    return replace(
        host, variables=variables | ({"RAY_AUTH_TOKEN": text} if text is not None else {})
    )


@pytest.mark.parametrize(
    ("token", "fault"),
    [
        ("f" * 64, "the token here is not that of the cluster"),
        (None, "the cluster asks for a token and this machine has none"),
    ],
    ids=["another", "none"],
)
def test_a_submission_without_the_token_is_told_which_side_lacks_it(
    hosts: tuple[Host, Host], tmp_path: Path, token: str | None, fault: str
) -> None:
    stranger = with_token(hosts[0], token, tmp_path)
    refused = stranger.run(submission(tmp_path, "refused"), timeout_s=120)
    assert refused.returncode == 3, refused.stdout + refused.stderr
    assert fault in " ".join(refused.stderr.split())


def test_a_driver_without_a_token_is_told_so(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    stranger = with_token(hosts[0], None, tmp_path)
    address = f"{hosts[0].address}:{GCS_PORT}"
    words = ["-m", "recipes.cli", "run", "recipes/debug_cpu.yaml", f"run.dir={tmp_path}"]
    refused = stranger.run(
        [sys.executable, *words, f"cluster.address={address}", "run.name=refused"], timeout_s=200
    )
    assert refused.returncode == 3, refused.stdout + refused.stderr
    record = json.loads((tmp_path / "refused/exit.json").read_text())
    assert "auth_token" in record["cause"]


def test_ray_job_stop_saves_and_ends_with_143(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    words = submission(tmp_path, "stopped", "train.steps=100000", "checkpoint.interval_steps=0")
    submitted = hosts[0].popen(words, tmp_path / "submit.log")
    wait_for_steps(tmp_path / "stopped", 3, timeout_s=120)
    log = (tmp_path / "submit.log").read_text()
    job = next(line.split()[1] for line in log.splitlines() if line.startswith("submitted "))
    stop = [str(Path(sys.executable).with_name("ray")), "job", "stop", job.rstrip(";")]
    stopped = hosts[0].run([*stop, "--address", DASHBOARD], timeout_s=120)
    assert stopped.returncode == 0, stopped.stderr
    assert submitted.wait(120) == 143, (tmp_path / "submit.log").read_text()
    record = json.loads((tmp_path / "stopped/exit.json").read_text())
    assert record["code"] == 143
    assert (tmp_path / "stopped/checkpoints/latest").exists()
    assert record["step"] >= 3
