"""The same training without Ray:

    torchrun --nproc-per-node 2 -m recipes.torchrun RECIPE [a.b=value ...]

torchrun decides how many ranks there are; of the recipe's cluster section only the cores and GPUs
per worker count.
"""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore

from cluster.config import ClusterConfig
from cluster.exit_record import ExitRecord, write_exit
from cluster.failure import failure_of
from cluster.host_memory import host_memory_gib
from cluster.progress import Progress
from cluster.signals import StopSignals
from cluster.view import RunView
from comms.config import RankEnvironment
from recipes.load import LoadedRecipe, load_recipe
from recipes.view import PlainView
from trainer.checkpoint.resume import decide_resume
from trainer.errors import BraidError, ExitCode, RecipeError
from trainer.main import run_job
from trainer.metrics import StepReport
from trainer.run_folder import RunFolder, write_atomically
from trainer.status import Status

MEETING_S = 120.0
"""Until the ranks know where they meet."""

ECHO_S = 2.0
"""How long a lost connection waits for the rank that caused it to say why."""

_DRIVER_KEYS = ("run.project", "run.sample_prompt")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> ExitCode:
    """Train as one rank; the exit code as README lists it. Every rank calls it, once."""
    try:
        if not arguments:
            raise RecipeError("name a recipe: torchrun … -m recipes.torchrun RECIPE [a.b=value …]")
        environment = rank_environment(environ)
        loaded = load_recipe(arguments[0], arguments[1:])
        folder = RunFolder.of(loaded.recipe.run)
        if environment.rank == 0:
            decide_resume(loaded.recipe.run.resume, folder)
            write_atomically(folder.recipe, loaded.text)
            folder.exit.unlink(missing_ok=True)
    except BraidError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return _train(loaded, with_resources(environment, loaded.recipe.cluster), folder)


def rank_environment(environ: Mapping[str, str]) -> RankEnvironment:
    """Who this process is, as torchrun tells it. Raises RecipeError where it does not."""
    missing = [name for name in _VARIABLES if name not in environ]
    if missing:
        raise RecipeError(
            f"{', '.join(missing)} not set; start with torchrun --nproc-per-node N "
            "-m recipes.torchrun RECIPE, or use braid run"
        )
    rank = int(environ["RANK"])
    return RankEnvironment(
        rank=rank,
        world_size=int(environ["WORLD_SIZE"]),
        local_rank=int(environ["LOCAL_RANK"]),
        local_world_size=int(environ["LOCAL_WORLD_SIZE"]),
        host=socket.gethostname(),
        master_address=environ["MASTER_ADDR"],
        master_port=_port(environ, rank),
    )


def _port(environ: Mapping[str, str], rank: int) -> int:
    """Where ranks meet. torchrun's own agent may sit on MASTER_PORT; rank 0 then picks another."""
    port = int(environ["MASTER_PORT"])
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return port
    address, timeout = environ["MASTER_ADDR"], timedelta(seconds=MEETING_S)
    store = TCPStore(address, port, is_master=False, timeout=timeout)
    key = f"braid/port/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if rank == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            store.set(key, str(probe.getsockname()[1]))
    return int(store.get(key))


def with_resources(environment: RankEnvironment, cluster: ClusterConfig) -> RankEnvironment:
    """The environment with the device and the threads that the recipe gives a worker."""
    return replace(
        environment,
        device_type="cuda" if cluster.gpus_per_worker else "cpu",
        threads=max(1, int(cluster.cpus_per_worker)),
    )


def explicit_keys(origins: Mapping[str, str]) -> dict[str, str]:
    """What was set, less what only Ray's part of a run reads."""
    return {
        key: origin
        for key, origin in origins.items()
        if origin != "default" and not key.startswith("cluster.") and key not in _DRIVER_KEYS
    }


def step_printer(view: RunView) -> Callable[[StepReport], None]:
    """Show every report with the time that is left."""
    progress = Progress()

    def show(report: StepReport) -> None:
        record: dict[str, Any] = report.metrics_record() | {"total_steps": report.total_steps}
        (shown,) = progress.advance([record])
        view.step(shown)

    return show


def ignore(report: StepReport) -> None:
    """Every rank has the same report; the first one shows it."""


def _train(loaded: LoadedRecipe, environment: RankEnvironment, folder: RunFolder) -> ExitCode:
    view, status, began_s = PlainView(), Status(), time.monotonic()
    try:
        with StopSignals() as stop:
            outcome = run_job(
                loaded.recipe.job,
                environment,
                status=status,
                explicit=explicit_keys(loaded.origins),
                sinks=[],
                should_stop=lambda: stop.requested,
                host_memory_gib=host_memory_gib,
                on_report=step_printer(view) if environment.rank == 0 else ignore,
            )
    except (BraidError, RuntimeError, OSError) as error:
        if not isinstance(error, BraidError):
            traceback.print_exc()
        return _fail(error, environment, status, folder)
    code = ExitCode.STOPPED if outcome.kind == "stopped" else ExitCode.DONE
    if environment.rank == 0:
        write_exit(_record(code, outcome.kind, environment, status), folder)
        view.finished(
            {
                "kind": outcome.kind,
                "step": outcome.step,
                "checkpoint": outcome.checkpoint,
                "run_dir": str(folder.root),
                "elapsed_s": time.monotonic() - began_s,
            }
        )
    return code


def _fail(
    error: BaseException, environment: RankEnvironment, status: Status, folder: RunFolder
) -> ExitCode:
    failure = failure_of(
        error,
        moment=status.read(),
        rank=environment.rank,
        host=environment.host,
        now_s=time.time(),
    )
    # The first rank to fail is the one to blame; a lost connection is only an echo of it.
    if not folder.exit.exists():
        if failure.communication:
            time.sleep(ECHO_S)
        if not folder.exit.exists():
            write_exit(_record(failure.exit_code, failure.error, environment, status), folder)
    where = f"rank {environment.rank} on {environment.host}, {failure.phase}"
    print(f"{type(error).__name__} at {where}: {error}", file=sys.stderr, flush=True)
    return failure.exit_code


def _record(code: ExitCode, cause: str, environment: RankEnvironment, status: Status) -> ExitRecord:
    moment = status.read()
    return ExitRecord(
        code=code,
        cause=cause,
        host=environment.host,
        rank=environment.rank,
        phase=moment.phase,
        step=moment.step,
        last_lines=(),
        time=time.time(),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
