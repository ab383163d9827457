"""Send a recipe to a Ray cluster as a job, and follow it to its end."""

import glob
import json
import logging
import math
import os
import shlex
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobInfo, JobStatus, JobSubmissionClient

from cluster.config import ClusterConfig
from cluster.environment import RAY_DEFAULTS, set_unless_set
from cluster.follow import follow
from cluster.ray_connect import reread_settings
from cluster.staging import RECIPE, list_sources, source_root, stage, summary
from cluster.view import RunView
from trainer.config import JobConfig
from trainer.errors import ExitCode, ResourceError
from trainer.run_folder import RunFolder

_POLL_S = 0.5
_STOP_MARGIN_S = 30
"""Beyond the grace to save: ending the workers and writing exit.json."""

_NEW_CLUSTER_S = 60.0
"""How long a cluster may be up before it takes jobs."""

_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers of Ray that tell of every upload and connection."""

_NO_BRAID = (1, 126, 127)
"""What Python returns where it cannot import, and the shell where it finds no Python."""


def submit(
    job: JobConfig,
    cluster: ClusterConfig,
    *,
    recipe_text: str,
    address: str,
    view: RunView,
) -> ExitCode:
    """Run a recipe as a Ray job at `address` (http://HEAD:8265) and return its exit code.

    The job's output goes to `view.note`, line by line. Interrupting this process leaves the job
    running. Raises ResourceError where the cluster cannot be reached, refuses or cannot start the
    job, and InfrastructureError where it stops answering.
    """
    set_unless_set(RAY_DEFAULTS)
    reread_settings()
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    client = _client(address)
    began_s = time.time()
    job_id = f"{job.run.name}-{uuid.uuid4().hex[:8]}"
    overrides = absolute_paths(job, Path.cwd()) | {
        "run.name": job.run.name,
        "cluster.address": "auto",
    }
    _send(client, job_id, recipe_text, overrides, cluster.stop_grace_s, view)
    view.note(f"submitted {job_id}; `ray job stop {job_id} --address {address}` saves and ends it")
    info = follow(client, job_id, address=address, view=view)
    return exit_code_of(info, written_code(RunFolder.of(job.run), since_s=began_s))


def entrypoint(overrides: Mapping[str, str]) -> str:
    """The shell command of the job. The `python` on the PATH that Ray was started with must have
    our dependencies. `exec`, so that a stop reaches our process and not a shell that ends before.
    """
    words = [f"{key}={value}" for key, value in overrides.items()]
    return "exec python -m recipes.cli run " + shlex.join([RECIPE, *words])


def absolute_paths(job: JobConfig, cwd: Path) -> dict[str, str]:
    """Overrides for relative paths of the recipe: the job runs in another folder.

    The run folder always; others where they name something that exists here, seen from `cwd`, or
    are a pattern of data files that some file here matches. `~` is the home of who submits.
    """
    overrides = {"run.dir": str((cwd / Path(job.run.dir).expanduser()).absolute())}
    named = {
        "model.path": job.model.path,
        # A word of its own, whatever a folder is called.
        "data.source": "" if job.data.source == "task" else job.data.source,
        "data.tokenizer": job.data.tokenizer,
        "run.resume": job.run.resume,
        "rl.task.path": job.rl.task.path,
        "rl.reference": job.rl.reference,
    }
    for key, value in named.items():
        if not value or Path(value).is_absolute():
            continue
        expanded = os.path.expanduser(value)
        pattern = os.path.join(glob.escape(str(cwd)), expanded)
        if (cwd / expanded).exists():
            overrides[key] = str((cwd / expanded).absolute())
        elif key == "data.source" and any(glob.iglob(pattern, recursive=True)):
            overrides[key] = pattern
    return overrides


def exit_code_of(info: JobInfo, written: ExitCode | None) -> ExitCode:
    """The run's own code where it is known, else what Ray's status comes to.

    Raises ResourceError where the job seems not to have started for want of a Python with Braid.
    """
    if written is not None:
        return written
    if info.driver_exit_code in _NO_BRAID:
        raise ResourceError(
            f"the job ended with code {info.driver_exit_code} and left no exit.json "
            "that can be seen here; the `python` on the head may lack Braid (see the output): "
            "activate the environment that has it before `ray start`, on every node"
        )
    if info.driver_exit_code in set(ExitCode):
        return ExitCode(info.driver_exit_code)
    by_status = {JobStatus.SUCCEEDED: ExitCode.DONE, JobStatus.STOPPED: ExitCode.STOPPED}
    return by_status.get(info.status, ExitCode.INFRASTRUCTURE)


def written_code(folder: RunFolder, *, since_s: float) -> ExitCode | None:
    """The code in exit.json, if the folder is visible here and the file is of this start."""
    try:
        record = json.loads(folder.exit.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return ExitCode(record["code"]) if record["time"] >= since_s else None


def _client(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ResourceError(_refused(address, str(error))) from error
    except (ConnectionError, RuntimeError) as error:
        raise ResourceError(
            f"no Ray dashboard answers at {address}: {error}. Give the address that `ray start "
            "--head` printed, such as http://HEAD:8265; it listens on the head's loopback unless "
            "started with --dashboard-host, so you may need an SSH tunnel"
        ) from error


def _refused(address: str, answer: str) -> str:
    """Which side lacks what, from the answer of the cluster."""
    if "invalid" in answer.lower():
        fault = "the token here is not that of the cluster"
    else:
        fault = "the cluster asks for a token and this machine has none"
    return (
        f"{address} refused the submission: {fault}. Copy the head's ~/.ray/auth_token to this "
        "machine's ~/.ray/auth_token, or point RAY_AUTH_TOKEN_PATH at it"
    )


def _send(
    client: JobSubmissionClient,
    name: str,
    recipe_text: str,
    overrides: Mapping[str, str],
    stop_grace_s: float,
    view: RunView,
) -> None:
    root = source_root()
    files = list_sources(root)
    view.note(summary(files))
    # Ray's default of 3 s would end the run before it has saved.
    wait_s = math.ceil(stop_grace_s) + _STOP_MARGIN_S
    with tempfile.TemporaryDirectory(prefix="braid-") as folder:
        stage(files, root, Path(folder), recipe_text)
        _submit_patiently(
            client,
            name,
            entrypoint(overrides),
            {
                "working_dir": folder,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(wait_s)},
            },
        )


def _submit_patiently(
    client: JobSubmissionClient, name: str, command: str, runtime_env: Mapping[str, Any]
) -> None:
    """Submit; where the cluster has only just started and cannot take jobs yet, try again."""
    deadline_s = time.monotonic() + _NEW_CLUSTER_S
    while True:
        try:
            client.submit_job(entrypoint=command, submission_id=name, runtime_env=dict(runtime_env))
            return
        except RuntimeError as error:
            starting = "No available agent" in str(error)
            if not starting or time.monotonic() > deadline_s:
                raise ResourceError(f"the cluster refused the job {name}: {error}") from error
        time.sleep(_POLL_S)
