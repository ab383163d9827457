"""The whole life of a run, seen from the driver."""

import time
from collections.abc import Mapping
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.environment import LOOPBACK_DEFAULTS, RAY_DEFAULTS, set_unless_set
from cluster.exit_record import (
    ExitRecord,
    record_of,
    record_of_driver,
    record_of_surrender,
    write_exit,
)
from cluster.failure import GaveUp, WorkersFailed, first_failure
from cluster.host_memory import GIB
from cluster.memory_folder import folders_in_memory, held_bytes
from cluster.reading import Outcome
from cluster.recovery.config import RecoveryConfig
from cluster.run import Run
from cluster.run_lock import held
from cluster.signals import StopSignals
from cluster.view import RunView
from cluster.waiting import Phases
from cluster.watchdog.config import WatchdogConfig
from trainer.checkpoint.folder import list_complete
from trainer.checkpoint.resume import Resume, decide_resume
from trainer.config import JobConfig
from trainer.errors import BraidError, ExitCode, InfrastructureError, ResourceError
from trainer.planner.batch import batch_of
from trainer.run_folder import RunFolder, append_event, write_atomically
from trainer.spread import require_layout

WORK = "cluster.training:train_rank"
"""What every rank does, as `module:function`."""


def launch(
    job: JobConfig,
    cluster: ClusterConfig,
    *,
    watchdog: WatchdogConfig,
    recovery: RecoveryConfig,
    origins: Mapping[str, str],
    recipe_text: str,
    view: RunView,
    work: str = WORK,
) -> ExitCode:
    """Run `job` on `cluster` to its end and return the exit code; exit.json says the same.

    Call it in the main thread: SIGTERM and SIGINT then save and stop the run. `watchdog` says how
    faults are noticed, `recovery` what is done about them. `origins` maps every dotted key to where
    it was set, "default" where it was not. `recipe_text` is the resolved recipe.

    Raises RecipeError, with nothing changed, where the ranks cannot be laid out as the recipe says,
    the run folder and `run.resume` do not fit or another driver holds the folder, and ResourceError
    where it cannot be written; every later failure is shown by `view.failed` and returned as its
    code.
    """
    require_layout(job, cluster.num_workers)
    folder = RunFolder.of(job.run)
    # A refusal writes nothing, so it comes before the folder is made; what counts is read after.
    decide_resume(job.run.resume, folder)
    run = Run(
        job=job,
        cluster=cluster,
        watchdog=watchdog,
        recovery=recovery,
        origins=origins,
        folder=folder,
        work=work,
    )
    with held(folder):
        resume = decide_resume(job.run.resume, folder)
        if resume.note:
            view.note(resume.note)
        goes_on = " (goes on)" if resume.kind == "continue" else ""
        view.note(f"run folder {folder.root}{goes_on}")
        if nothing_left(job, resume, folder):
            return already_done(run, resume.candidates[0], view)
        claim(folder, recipe_text)
        view.note(batch_of(job, cluster.num_workers).explain())
        set_unless_set(RAY_DEFAULTS)
        if cluster.address == "local":
            set_unless_set(LOOPBACK_DEFAULTS)
        return to_the_end(run, view)


def to_the_end(run: Run, view: RunView) -> ExitCode:
    """Conduct the run, then record and show how it ended."""
    began_s = time.monotonic()
    with StopSignals() as stop:
        # Ray reads its variables when it is first imported: after they are set, and not above.
        from cluster.session import conduct

        phases = Phases(view, stop)
        try:
            outcome = conduct(run, phases=phases, view=view, stop=stop)
        except GaveUp as error:
            return fail(record_of_surrender(error, run.folder), run, view)
        except WorkersFailed as error:
            return fail(record_of(first_failure(error.failures), run.folder), run, view)
        except BraidError as error:
            return fail(record_of_driver(error, phases.current, now_s=time.time()), run, view)
        except OSError as error:
            told = error_of_system(error, run.folder)
            return fail(record_of_driver(told, phases.current, now_s=time.time()), run, view)
    return succeed(outcome, run, view, elapsed_s=time.monotonic() - began_s)


def nothing_left(job: JobConfig, resume: Resume, folder: RunFolder) -> bool:
    """Whether the checkpoint that the run would go on from is its last. A checkpoint that the
    recipe names is one to return to, and training goes on from it."""
    if resume.kind != "continue" or job.run.resume not in ("auto", "must"):
        return False
    steps = {path: step for step, path in list_complete(folder.checkpoints)}
    return steps.get(resume.candidates[0], 0) >= job.train.steps


def already_done(run: Run, checkpoint: Path, view: RunView) -> ExitCode:
    """Say that all steps are done, and leave an exit.json that agrees."""
    steps = run.job.train.steps
    view.note(
        f"all {steps} steps are done and nothing is left to train; raise train.steps "
        "to go on, or choose another run.name to start afresh"
    )
    outcome = Outcome(kind="finished", step=steps, checkpoint=checkpoint.name)
    record_exit(record_of_outcome(outcome), run.folder, view)
    return ExitCode.DONE


def error_of_system(error: OSError, folder: RunFolder) -> BraidError:
    """What to tell of an error of the disk or, rarely, of a connection of the driver."""
    if isinstance(error, ConnectionError | TimeoutError):
        return InfrastructureError(
            f"a connection of the driver broke: {error}; start the run again"
        )
    return ResourceError(
        f"cannot write {error.filename or folder.root}: {error.strerror or error}; free some disk "
        "space there, or set run.dir to a folder that can be written"
    )


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
    record = record_of_outcome(outcome)
    record_exit(record, run.folder, view)
    view.finished(
        {
            "kind": outcome.kind,
            "step": outcome.step,
            "checkpoint": outcome.checkpoint,
            "run_dir": str(run.folder.root),
            "elapsed_s": elapsed_s,
        }
    )
    return record.code


def fail(record: ExitRecord, run: Run, view: RunView) -> ExitCode:
    """Show and record a run that ended otherwise: a full disk must not hide what happened."""
    log = None if record.rank is None else str(run.folder.log("worker", record.rank))
    view.failed(record.as_dict() | {"log": log})
    warn_of_memory(run, view)
    record_exit(record, run.folder, view)
    try:
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
    except OSError as error:
        view.warning(f"{run.folder.events} lacks this failure: {error}")
    return record.code


def warn_of_memory(run: Run, view: RunView) -> None:
    """Say what stays in this host's memory for the next start, and how to free it."""
    folders = folders_in_memory(run.folder.root, run.job.keep.dir)
    held_gib = sum(held_bytes(path) for path in folders) / GIB
    if held_gib:
        view.warning(
            f"{held_gib:.2g} GiB of snapshots stay in this host's memory: the same command goes on "
            f"from them, `braid clean {run.folder.root}` frees them"
        )


def record_of_outcome(outcome: Outcome) -> ExitRecord:
    """What to write about a run that ended as asked."""
    return ExitRecord(
        code=ExitCode.STOPPED if outcome.kind == "stopped" else ExitCode.DONE,
        cause=outcome.kind,
        host=None,
        rank=None,
        phase="done",
        step=outcome.step,
        last_lines=(),
        time=time.time(),
    )


def record_exit(record: ExitRecord, folder: RunFolder, view: RunView) -> None:
    """Write exit.json, or warn that it could not be written."""
    try:
        write_exit(record, folder)
    except OSError as error:
        view.warning(f"{folder.exit} cannot be written: {error}; the exit code says how it ended")
