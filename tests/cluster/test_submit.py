"""A submission to a loopback cluster of two nodes, for machines without root."""

import glob
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus

from cluster.config import ClusterConfig
from cluster.drills.namespaces import why_not
from cluster.network import free_port
from cluster.ray_connect import reread_settings
from cluster.submit import _submit_patiently, absolute_paths, exit_code_of, submit
from recipes.load import load_recipe
from trainer.config import JobConfig, RunConfig
from trainer.data.config import DataConfig
from trainer.errors import ExitCode, ResourceError
from trainer.run_folder import read_lines

OBJECT_STORE_BYTES = 80 * 1024 * 1024

# Ray's job client passes it to aiohttp.
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Address of a head with a dashboard; a second node is beside it, each with one core."""
    assert not ray.is_initialized()
    reread_settings()
    port = free_port("127.0.0.1")
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    with pytest.MonkeyPatch.context() as patch:
        # As in an activated environment, from which people start Ray.
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        cluster = Cluster(
            initialize_head=True,
            head_node_args={**node, "include_dashboard": True, "dashboard_port": port},
        )
    try:
        cluster.add_node(**node)
        yield f"http://127.0.0.1:{port}"
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(why_not() is None, reason="tests/hosts submits to two real hosts here")
def test_a_submitted_recipe_trains_over_two_nodes(
    dashboard: str, tmp_path: Path, view: Any
) -> None:
    root = Path(__file__).resolve().parents[2]
    loaded = load_recipe(
        str(root / "recipes/debug_cpu.yaml"),
        overrides=[f"run.dir={tmp_path}", "run.name=sent", f"data.cache_dir={tmp_path}/cache"],
    )
    code = submit(
        loaded.recipe.job,
        loaded.recipe.cluster,
        recipe_text=loaded.text,
        address=dashboard,
        view=view,
    )
    output = "\n".join(view.notes)
    assert code is ExitCode.DONE, output
    assert view.notes[0].startswith("working directory: ")
    assert "phase: training" in output
    assert json.loads((tmp_path / "sent/exit.json").read_text())["step"] == 8
    assert len(read_lines(tmp_path / "sent/metrics.jsonl")) == 8


def test_a_dashboard_that_is_not_there(tmp_path: Path, view: Any) -> None:
    job = load_recipe(
        str(Path(__file__).resolve().parents[2] / "recipes/debug_cpu.yaml")
    ).recipe.job
    with pytest.raises(ResourceError, match="no Ray dashboard answers"):
        submit(
            job,
            ClusterConfig(),
            recipe_text="",
            address=f"http://127.0.0.1:{free_port('127.0.0.1')}",
            view=view,
        )
    assert os.listdir(tmp_path) == []


def test_a_refused_job_names_itself_and_the_reason() -> None:
    class Refusing:
        def submit_job(self, **_: object) -> str:
            raise RuntimeError("Job with submission_id sent-1 already exists")

    client: Any = Refusing()
    with pytest.raises(ResourceError, match=r"refused the job sent-1: .* already exists"):
        _submit_patiently(client, "sent-1", "true", {})


def test_paths_of_this_machine_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd, home = tmp_path / "here[1]", tmp_path / "home"
    for folder in (cwd / "data", home):
        folder.mkdir(parents=True)
        (folder / "a.jsonl").touch()
    monkeypatch.setenv("HOME", str(home))

    def source(given: str) -> str | None:
        job = JobConfig(data=DataConfig(source=given), run=RunConfig(dir="~/runs"))
        overrides = absolute_paths(job, cwd)
        assert overrides["run.dir"] == str(home / "runs")
        return overrides.get("data.source")

    pattern = source("data/*.jsonl")
    assert pattern is not None
    assert glob.glob(pattern) == [str(cwd / "data/a.jsonl")]
    assert source("~/*.jsonl") == str(home / "*.jsonl")
    assert source("~/a.jsonl") == str(home / "a.jsonl")
    assert source("data") == str(cwd / "data")
    assert source("elsewhere/*.jsonl") is None


def test_a_job_that_never_started_points_to_the_environment() -> None:
    failed: Any = SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=1)
    with pytest.raises(ResourceError, match="before `ray start`"):
        exit_code_of(failed, None)
    assert exit_code_of(failed, ExitCode.DATA) is ExitCode.DATA
    failed.driver_exit_code = None
    assert exit_code_of(failed, None) is ExitCode.INFRASTRUCTURE
