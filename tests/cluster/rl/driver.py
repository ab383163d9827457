"""Runs by rewards that compute nothing, so that what is tried out is their driver.

As a program, with a folder and the address of a cluster: one such run, for tests that kill it.
"""

import sys
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig
from cluster.environment import LOOPBACK_DEFAULTS, RAY_DEFAULTS, set_unless_set
from recipes.view import PlainView
from tests.cluster import runs
from trainer.config import JobConfig, RunConfig, TrainConfig
from trainer.errors import ExitCode
from trainer.rl.config import RlConfig, RolloutConfig

STEPS, PROMPTS = 20, 3


def job(
    folder: Path, name: str, *, steps: int = STEPS, resize: Any = "advise", **rollout: Any
) -> JobConfig:
    return JobConfig(
        run=RunConfig(name=name, dir=str(folder)),
        train=TrainConfig(steps=steps),
        rl=RlConfig(
            enabled=True,
            prompts_per_step=PROMPTS,
            samples_per_prompt=2,
            max_staleness=2,
            max_prompt_tokens=8,
            resize=resize,
        ),
        rollout=RolloutConfig(
            **{"workers": 2, "cpus_per_worker": 0.1, "max_new_tokens": 8} | rollout
        ),
    )


def run(
    job: JobConfig,
    view: Any,
    *,
    rollout_work: str = "payloads:sample",
    work: str = "payloads:train",
    address: str = "auto",
    ranks: int = 1,
) -> ExitCode:
    cpus = 0.5 if ranks == 1 else job.rollout.cpus_per_worker
    return runs.run(
        job,
        view,
        ClusterConfig(address=address, num_workers=ranks, cpus_per_worker=cpus),
        work=f"tests.cluster.rl.{work}",
        rollout_work=f"tests.cluster.rl.{rollout_work}",
    )


if __name__ == "__main__":
    set_unless_set(RAY_DEFAULTS)
    set_unless_set(LOOPBACK_DEFAULTS)
    folder, address = sys.argv[1:]
    sys.exit(int(run(job(Path(folder), "killed"), PlainView(), address=address)))
