"""One training process from start to end, under whatever started it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch
import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import join, leave
from comms.telemetry.recorder import Recorder
from trainer.build import build
from trainer.config import JobConfig
from trainer.data.corpus import Corpus
from trainer.data.tokenizer import Tokenizer, prepare_tokenizer
from trainer.errors import InfrastructureError
from trainer.folder_lock import only_writer
from trainer.job import Listeners, Outcome
from trainer.loop import train
from trainer.metrics import JsonlSink, Sink, StepReport
from trainer.reads import ReadLog, require_read
from trainer.run_folder import RunFolder, append_event
from trainer.status import Status
from trainer.telemetry import recording
from trainer.tensorboard import TensorBoardSink

JOIN_DEADLINE_S = 7200.0
"""Long, because other hosts may still be preparing their data; a driver has shorter deadlines of
its own, phase by phase."""


def run_job(
    config: JobConfig,
    environment: RankEnvironment,
    *,
    status: Status,
    explicit: Mapping[str, str],
    sinks: Sequence[Sink],
    should_stop: Callable[[], bool],
    host_memory_gib: Callable[[], float],
    on_report: Callable[[StepReport], None],
    board: Path | None = None,
    should_regroup: Callable[[], bool] = bool,
) -> Outcome:
    """Train as `config` says. All ranks call it, once per process.

    `explicit` maps the keys that the user set to where they were set; one that nothing reads is a
    RecipeError before the first step. `sinks` are used on rank 0, beside the run folder's own.
    `board` is a file in this host's memory in which the process tells what it does; it can be read
    while the process is stuck.
    """
    log = ReadLog()
    config = log.watch(config)
    folder = RunFolder.of(config.run)
    torch.set_num_threads(environment.threads)
    with recording(board, environment, status) as recorder, ExitStack() as stack:
        status.enter("preparing")
        if environment.rank == 0:
            stack.enter_context(only_writer(folder.root))
        # Before joining: nobody should wait in a collective while one process trains a tokenizer.
        tokenizer = prepare_tokenizer(config.data, config.model.path)
        with closing(
            Corpus.open(config.data, tokenizer, background=environment.local_rank == 0)
        ) as corpus:
            corpus.begin(config.run.seed)
            status.enter("joining")
            meet(environment)
            listeners = Listeners(
                status=status,
                sinks=(*_own_sinks(folder, environment), *sinks),
                on_report=on_report,
                should_stop=should_stop,
                host_memory_gib=host_memory_gib,
                should_regroup=should_regroup,
            )
            try:
                outcome = _train(
                    config, environment, tokenizer, corpus, listeners, log, explicit, recorder
                )
            finally:
                leave()
        status.enter("done")
        return outcome


def meet(environment: RankEnvironment) -> None:
    """Join the other ranks. Raises InfrastructureError where that is not possible in time."""
    try:
        join(environment, deadline_s=JOIN_DEADLINE_S)
    except (dist.DistError, OSError) as error:
        raise InfrastructureError(
            f"rank {environment.rank} on {environment.host} could not meet the others at "
            f"{environment.master_address}:{environment.master_port}: {error}. If another program "
            "holds that port, choose another (torchrun --master-port); if a rank is missing, see "
            "its log"
        ) from error


def _train(
    config: JobConfig,
    environment: RankEnvironment,
    tokenizer: Tokenizer,
    corpus: Corpus,
    listeners: Listeners,
    log: ReadLog,
    explicit: Mapping[str, str],
    recorder: Recorder | None,
) -> Outcome:
    job = build(
        config,
        environment,
        tokenizer=tokenizer,
        corpus=corpus,
        listeners=listeners,
        recorder=recorder,
    )
    with closing(job):
        require_read(log, explicit)
        if environment.rank == 0:
            tokenizer.save(job.folder.tokenizer)
            append_event(
                job.folder.events,
                now_s=time.time(),
                kind="started",
                step=job.progress.step,
                world_size=environment.world_size,
                weights=job.assembly.origin,
            )
        outcome = train(job)
        # Only after a clean end: a disk or a peer that hangs would hold up the error it caused.
        job.assembly.close()
        if environment.rank == 0:
            append_event(
                job.folder.events,
                now_s=time.time(),
                kind=outcome.kind,
                step=outcome.step,
                checkpoint=outcome.checkpoint,
            )
    return outcome


def _own_sinks(folder: RunFolder, environment: RankEnvironment) -> list[Sink]:
    if environment.rank != 0:
        return []
    return [JsonlSink(folder.metrics, folder.plans), TensorBoardSink(folder.tensorboard)]
