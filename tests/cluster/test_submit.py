"""A submission to a loopback cluster of two nodes, for machines without root."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.config import ClusterConfig
from cluster.network import free_port
from cluster.ray_connect import reread_settings
from cluster.submit import submit
from recipes.load import load_recipe
from trainer.errors import ExitCode, ResourceError

OBJECT_STORE_BYTES = 80 * 1024 * 1024

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    # Ray's job client passes it to aiohttp.
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
]


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
        submission_id="sent-1",
    )
    output = "\n".join(view.notes)
    assert code is ExitCode.DONE, output
    assert view.notes[0].startswith("working directory: ")
    assert "phase: training" in output
    assert json.loads((tmp_path / "sent/exit.json").read_text())["step"] == 8
    assert len((tmp_path / "sent/metrics.jsonl").read_text().splitlines()) == 8
    with pytest.raises(ResourceError, match="sent-1"):
        submit(
            loaded.recipe.job,
            loaded.recipe.cluster,
            recipe_text=loaded.text,
            address=dashboard,
            view=view,
            submission_id="sent-1",
        )


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
