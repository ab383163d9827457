"""The whole life of a run, seen from the driver."""

import time
from collections.abc import Mapping

from cluster.config import ClusterConfig
from cluster.environment import LOOPBACK_DEFAULTS, RAY_DEFAULTS, set_unless_set
from cluster.exit_record import ExitRecord, record_of, record_of_driver, write_exit
from cluster.failure import WorkersFailed, first_failure
from cluster.reading import Outcome
from cluster.run import Run
from cluster.signals import StopSignals
from cluster.view import RunView
from cluster.waiting import Phases
from trainer.checkpoint.folder import list_complete
from trainer.checkpoint.resume import decide_resume
from trainer.config import JobConfig
from trainer.errors import BraidError, ExitCode, ResourceError
from trainer.planner.batch import BatchArithmetic
from trainer.run_folder import RunFolder, append_event, write_atomically

WORK = "cluster.training:train_rank"
"""What every rank does, as `module:function`."""


def launch(
    job: JobConfig,
    cluster: ClusterConfig,
    *,
    origins: Mapping[str, str],
    recipe_text: str,
    view: RunView,
    work: str = WORK,
) -> ExitCode:
    """Run `job` on `cluster` to its end and return the exit code; exit.json says the same.

    Call it in the main thread: SIGTERM and SIGINT then save and stop the run. `origins` maps every
    dotted key to where it was set, "default" where it was not. `recipe_text` is the resolved
    recipe. Raises RecipeError, with nothing written, where the run folder and `run.resume` do not
    fit; every later failure is shown by `view.failed` and returned as its code.
    """
    folder = RunFolder.of(job.run)
    resume = decide_resume(job.run.resume, folder)
    began_s = time.time()
    if resume.note:
        view.note(resume.note)
    view.note(f"run folder {folder.root}" + (" (goes on)" if resume.kind == "continue" else ""))
    if resume.kind == "continue" and newest_step(folder) >= job.train.steps:
        view.note(
            f"all {job.train.steps} steps are done and nothing is left to train; raise train.steps "
            "to go on, or choose another run.name to start afresh"
        )
        return ExitCode.DONE
    claim(folder, recipe_text)
    view.note(arithmetic_of(job, cluster).explain())
    set_unless_set(RAY_DEFAULTS)
    if cluster.address == "local":
        set_unless_set(LOOPBACK_DEFAULTS)
    # Here and not above: Ray reads those variables when it is first imported.
    from cluster.session import conduct

    run = Run(job=job, cluster=cluster, origins=origins, folder=folder, work=work)
    with StopSignals() as stop:
        phases = Phases(view, stop)
        try:
            outcome = conduct(run, phases=phases, view=view, stop=stop)
        except WorkersFailed as error:
            return fail(record_of(first_failure(error.failures), folder), run, view)
        except BraidError as error:
            return fail(record_of_driver(error, phases.current, now_s=time.time()), run, view)
    return succeed(outcome, run, view, elapsed_s=time.time() - began_s)


def arithmetic_of(job: JobConfig, cluster: ClusterConfig) -> BatchArithmetic:
    """How the recipe's batch is spread."""
    return BatchArithmetic(
        global_batch_tokens=job.train.global_batch_tokens,
        seq_len=job.data.seq_len,
        max_tokens_per_device=job.train.max_tokens_per_device,
        world_size=cluster.num_workers,
    )


def newest_step(folder: RunFolder) -> int:
    """Step of the run's newest complete checkpoint; 0 without one."""
    return max((step for step, _ in list_complete(folder.checkpoints)), default=0)


def claim(folder: RunFolder, recipe_text: str) -> None:
    """Make the run folder and put the resolved recipe there. Raises ResourceError where the disk
    refuses."""
    try:
        write_atomically(folder.recipe, recipe_text)
        folder.exit.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot write to the run folder {folder.root}: {error}; set run.dir to a folder that "
            "can be written"
        ) from error


def succeed(outcome: Outcome, run: Run, view: RunView, *, elapsed_s: float) -> ExitCode:
    """Record and show a run that ended as asked."""
    stopped = outcome.kind == "stopped"
    code = ExitCode.STOPPED if stopped else ExitCode.DONE
    record = ExitRecord(
        code=code,
        cause=outcome.kind,
        host=None,
        rank=None,
        phase="done",
        step=outcome.step,
        last_lines=(),
        time=time.time(),
    )
    write_exit(record, run.folder)
    view.finished(
        {
            "kind": outcome.kind,
            "step": outcome.step,
            "checkpoint": outcome.checkpoint,
            "run_dir": str(run.folder.root),
            "elapsed_s": elapsed_s,
        }
    )
    return code


def fail(record: ExitRecord, run: Run, view: RunView) -> ExitCode:
    """Record and show a run that ended otherwise."""
    write_exit(record, run.folder)
    log = None if record.rank is None else str(run.folder.log("worker", record.rank))
    append_event(
        run.folder.events,
        now_s=record.time,
        kind="failed",
        step=record.step,
        host=record.host,
        rank=record.rank,
        cause=record.cause,
        code=int(record.code),
    )
    view.failed(record.as_dict() | {"log": log})
    return record.code
