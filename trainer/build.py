"""Join the parts of one training process: the one place that knows them all."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import broadcast_bytes, device_of, own_group, side_group
from comms.ledger import Ledger
from comms.telemetry.recorder import Recorder
from parallel.experts.placement import loan_cost_rows
from trainer.assembly import Assembly, assemble
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig
from trainer.data.corpus import Corpus
from trainer.data.stream import TokenStream
from trainer.data.tokenizer import Tokenizer
from trainer.describing import describer_of, snapshot_of
from trainer.elastic import ElasticExperts
from trainer.errors import DataError
from trainer.feed import StepFeed
from trainer.host_map import map_hosts
from trainer.islands.exchange import Islands
from trainer.islands.opening import open_islands
from trainer.job import Job, Listeners, Rules
from trainer.links import followers_of, open_links
from trainer.memory_saver import Describe, MemorySaver
from trainer.model.size import step_flops
from trainer.numeric.guard import NumericGuard
from trainer.numeric.jumps import Rollback
from trainer.numeric.opening import open_numeric
from trainer.numeric.record import agreed_rollbacks
from trainer.planner.batch import BatchArithmetic, batch_of
from trainer.planner.protocol import Planner
from trainer.planning import build_planner
from trainer.progress import Progress
from trainer.restored import Restored, share_of
from trainer.resume import restore
from trainer.run_folder import RunFolder
from trainer.saving import Saver, Snapshot
from trainer.schedule import build_schedule
from trainer.snapshot_opening import find_own_snapshots, open_memory_saver
from trainer.stopwatch import Stopwatch

PHASES = {"begin": "rounds", "summed": "vote", "voted": "update", "updated": "report"}
"""Of a step, by the mark at which each begins; before the first it waits for its data."""


def build(
    config: JobConfig,
    environment: RankEnvironment,
    *,
    tokenizer: Tokenizer,
    corpus: Corpus,
    listeners: Listeners,
    recorder: Recorder | None = None,
) -> Job:
    """Make every part and join them. All ranks call it, after joining the default group. With
    `recorder`, what the job does can be read from outside while it does it."""
    listeners.status.enter("building")
    require_same_data_everywhere(corpus, environment)
    folder = RunFolder.of(config.run)
    ledger = Ledger(recorder=recorder)
    hosts = map_hosts(environment)
    assembly = assemble(
        config, environment, tokenizer_vocab=tokenizer.vocab_size, ledger=ledger, hosts=hosts
    )
    arithmetic = batch_of(config, environment.world_size)
    cursor = data_cursor(config, corpus, arithmetic)
    listeners.status.enter("loading")
    islands = open_islands(config, assembly, environment, recorder=recorder)
    group = side_group()
    rollbacks = agreed_rollbacks(folder, environment, group)
    restored = go_on(config, folder, environment, group, assembly, cursor, islands, rollbacks)
    progress = Progress(rollbacks=rollbacks) if restored is None else restored.progress
    describe_run = describer_of(assembly, environment, progress, cursor)
    memory, saver = open_savers(
        config, folder, environment, group, assembly, islands, restored, describe_run
    )
    numeric = open_numeric(config, folder, environment, group, assembly, saver, progress, islands)
    followers = followers_of(assembly, config.parallel)
    links = open_links(hosts, environment, followers, assembly.layout, folder, step=progress.step)
    planner = build_planner(config, environment, assembly, arithmetic, islands, links)
    ledger.take()
    return Job(
        environment=environment,
        folder=folder,
        rules=rules_of(config, assembly),
        assembly=assembly,
        progress=progress,
        planner=planner,
        feed=open_feed(
            config, environment, assembly, corpus, planner, arithmetic, restored, numeric
        ),
        saver=saver,
        memory=memory,
        numeric=numeric,
        elastic=open_elastic(assembly, planner),
        islands=islands,
        links=links,
        ledger=ledger,
        stopwatch=Stopwatch(device_of(environment), partial(enter_phase, ledger)),
        listeners=listeners,
    )


def go_on(
    config: JobConfig,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
    cursor: dict[str, Any],
    islands: Islands | None,
    rollbacks: tuple[Rollback, ...],
) -> Restored | None:
    """From the newest state that the recipe allows; None starts afresh."""
    return restore(
        config.run.resume,
        folder=folder,
        environment=environment,
        group=group,
        assembly=assembly,
        cursor=cursor,
        islands=islands,
        find_snapshots=partial(find_own_snapshots, config.keep, folder, environment, group),
        rollbacks=rollbacks,
    )


def enter_phase(ledger: Ledger, mark: str) -> None:
    """Record the phase of a step that begins at a mark of its stopwatch."""
    ledger.enter(PHASES[mark])


def require_same_data_everywhere(corpus: Corpus, environment: RankEnvironment) -> None:
    """Raise DataError where this rank's host has other data than rank 0's: all ranks cut their
    part from what must be one stream."""
    own = corpus.fingerprint.encode()
    assert dist.group.WORLD is not None
    first = broadcast_bytes(own if environment.rank == 0 else b"", group=dist.group.WORLD)
    if own != first:
        raise DataError(
            f"the data on {environment.host} (rank {environment.rank}) is not what rank 0 has; "
            "give all hosts the same files and tokenizer, and for data.source=python_stdlib the "
            "same Python release"
        )


def data_cursor(config: JobConfig, corpus: Corpus, arithmetic: BatchArithmetic) -> dict[str, Any]:
    """What, together with the step, says which tokens come next."""
    return {
        "fingerprint": corpus.fingerprint,
        "seed": config.run.seed,
        "seq_len": config.data.seq_len,
        "sequences_per_step": arithmetic.sequences_per_step,
    }


def rules_of(config: JobConfig, assembly: Assembly) -> Rules:
    """The numbers that the loop goes by, read once."""
    moe = assembly.architecture.moe
    linear_flops, quadratic_flops = step_flops(assembly.architecture, config.data.seq_len)
    return Rules(
        total_steps=config.train.steps,
        max_grad_norm=_clipping_norm(config),
        bias_update_rate=0.0 if moe is None else moe.bias_update_rate,
        schedule=build_schedule(config.sched, steps=config.train.steps, peak=config.optim.lr),
        seed=config.run.seed,
        linear_flops_per_token=linear_flops,
        quadratic_flops=quadratic_flops,
        rebalance_interval_steps=(
            config.parallel.rebalance_interval_steps if assembly.layout.ep > 1 else 0
        ),
    )


def _clipping_norm(config: JobConfig) -> float:
    """What the update clips to; with `dgc` ranks have clipped before momentum was added."""
    return math.inf if config.comms.replica.method == "dgc" else config.optim.max_grad_norm


def open_elastic(assembly: Assembly, planner: Planner) -> ElasticExperts | None:
    """What moves experts between ranks, where they are spread. All ranks call it."""
    architecture, layout = assembly.architecture, assembly.layout
    if layout.ep == 1 or architecture.moe is None:
        return None
    moe = architecture.moe
    parameters = 3 * (moe.dispatch_size or architecture.hidden_size) * moe.expert_intermediate_size
    rows = loan_cost_rows(
        expert_bytes=parameters * assembly.dtype.itemsize,
        expert_parameters=parameters,
        link_bytes_per_s=planner.hardware.link_bytes_per_s,
        flops_per_s=planner.hardware.flops_per_s,
    )
    # Every rank has measured its own rates, and all must decide alike.
    agreed = torch.tensor(rows, dtype=torch.float64)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    return ElasticExperts(
        assembly.weights,
        assembly.optimizer,
        expert_groups=layout.data_ranks // layout.ep,
        loan_rows=agreed.item(),
    )


def open_savers(
    config: JobConfig,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    assembly: Assembly,
    islands: Islands | None,
    restored: Restored | None,
    describe_run: Describe,
) -> tuple[MemorySaver, Saver]:
    """What takes snapshots in memory, and what writes checkpoints."""
    # Before the saver uses the same group from a thread of its own.
    memory = open_memory_saver(
        config.keep,
        folder,
        environment,
        group,
        assembly=assembly,
        islands=islands,
        describe_run=describe_run,
        forget=restored is None or restored.back,
    )
    saver = open_saver(
        config.checkpoint,
        folder,
        group,
        snapshot=snapshot_of(assembly, environment, describe_run, islands),
        events=folder.events if environment.rank == 0 else None,
        restored=restored,
    )
    return memory, saver


def open_saver(
    config: CheckpointConfig,
    folder: RunFolder,
    group: dist.ProcessGroup,
    *,
    snapshot: Snapshot,
    events: Path | None,
    restored: Restored | None,
) -> Saver:
    """The writer of checkpoints, which knows what is on disk already."""
    checkpointer = Checkpointer(
        folder.checkpoints, keep_last=config.keep_last, group=group, blocking=config.blocking
    )
    saver = Saver(checkpointer, config, snapshot=snapshot, events=events)
    if restored is not None:
        saver.past(restored.past_step)
    if restored is not None and restored.on_disk is not None:
        if restored.on_disk == restored.path:
            saver.resumed(restored.progress.step, restored.path)
        else:
            saver.found(restored.on_disk)
    return saver


def open_feed(
    config: JobConfig,
    environment: RankEnvironment,
    assembly: Assembly,
    corpus: Corpus,
    planner: Planner,
    arithmetic: BatchArithmetic,
    restored: Restored | None,
    numeric: NumericGuard,
) -> StepFeed:
    """The stream from the first step that is still to do, prepared on a group of its own."""
    stream = TokenStream(
        corpus,
        config.data,
        seed=config.run.seed,
        sequences_per_step=arithmetic.sequences_per_step,
    )
    layout = assembly.layout
    group = own_group(layout.islands(), backend="gloo")
    assert group is not None
    return StepFeed(
        stream,
        planner,
        data_rank=layout.data_rank(environment.rank),
        share=share_of(layout, environment.rank, restored),
        group=group,
        steps=numeric.steps_left(config.train.steps),
    )
