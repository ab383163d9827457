"""Without Ray: who a rank is, what counts as set, and a real run of two ranks."""

import json
import os
import subprocess
import sys

import pytest
from torch.distributed import TCPStore

from cluster.config import ClusterConfig
from recipes.torchrun import explicit_keys, main, rank_environment, with_resources
from trainer.errors import ExitCode, RecipeError
from trainer.run_folder import read_lines

ENVIRON = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29501",
}


def test_a_rank_is_who_torchrun_says():
    environment = rank_environment(ENVIRON)
    assert (environment.rank, environment.world_size) == (1, 4)
    assert (environment.local_rank, environment.local_world_size) == (1, 2)
    assert environment.master_port == 29501
    equipped = with_resources(environment, ClusterConfig(gpus_per_worker=1.0, cpus_per_worker=3.0))
    assert (equipped.device_type, equipped.threads) == ("cuda", 3)


def test_without_torchrun_the_remedy_is_named(capsys):
    with pytest.raises(RecipeError, match=r"RANK, WORLD_SIZE.*torchrun --nproc-per-node N"):
        rank_environment({})
    assert main(["quickstart"], {}) is ExitCode.RECIPE
    assert main([], ENVIRON) is ExitCode.RECIPE
    assert "name a recipe" in capsys.readouterr().err


def test_ranks_meet_beside_the_agent_that_holds_the_master_port():
    agent = TCPStore("127.0.0.1", 0, is_master=True)
    environ = ENVIRON | {"MASTER_PORT": str(agent.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    first = rank_environment(environ | {"RANK": "0"})
    second = rank_environment(environ)
    assert first.master_port == second.master_port != agent.port
    assert agent.check(["braid/port/0"])


def test_only_what_this_path_reads_counts_as_set():
    origins = {
        "train.steps": "r.yaml:1",
        "train.compile": "default",
        "cluster.address": "r.yaml:2",
        "run.project": "r.yaml:3",
        "run.seed": "command line",
    }
    assert explicit_keys(origins) == {"train.steps": "r.yaml:1", "run.seed": "command line"}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_ranks_train(tmp_path):
    (tmp_path / "text").mkdir()
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa"
    (tmp_path / "text" / "a.txt").write_text("\n".join(f"{i} {words}" for i in range(4000)))
    overrides = [
        f"data.source={tmp_path / 'text'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        f"run.dir={tmp_path}",
        "run.name=run",
        "train.steps=4",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "recipes.torchrun", "debug_cpu", *overrides],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("step: 4/4  loss: ")]
    assert "finished at step 4" in done.stdout
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["code"] == 0
    assert (tmp_path / "run" / "recipe.yaml").is_file()
