"""The training loop: a list of verbs."""

import time
from dataclasses import replace

import torch

from comms.groups import device_of
from trainer.feed import AskedToStop, StepWork
from trainer.job import Job, Outcome, StepDone
from trainer.memory import device_memory_gib
from trainer.metrics import StepReport
from trainer.model.config import Architecture
from trainer.run_folder import append_event
from trainer.step import StepResult, train_step
from trainer.vote import Verdict


def train(job: Job) -> Outcome:
    """Train the remaining steps, save, and say how it ended. All ranks call it."""
    if job.saver.newest is None:
        job.saver.rehearse(job.progress.step)
    job.listeners.status.enter("first_step", job.progress.step)
    try:
        ending = run_steps(job)
    except AskedToStop:
        ending = "stopped"
    if ending == "regrouped":
        return leave_for_others(job)
    job.listeners.status.enter("stopping")
    publish_rest(job)
    job.memory.settle()
    checkpoint = job.saver.finish(job.progress.step)
    job.memory.finish()
    return Outcome(
        kind=ending,
        step=job.progress.step,
        checkpoint=None if checkpoint is None else str(checkpoint),
    )


def leave_for_others(job: Job) -> Outcome:
    """End at a step that is in memory or on disk; another set of ranks goes on from there."""
    job.listeners.status.enter("stopping")
    job.memory.settle()
    job.saver.wait()
    newest = job.saver.newest
    return Outcome(
        kind="regrouped",
        step=job.progress.step,
        checkpoint=None if newest is None else str(newest),
    )


def run_steps(job: Job) -> str:
    """Train the remaining steps, or until there is reason to leave; the kind of outcome."""
    ended_s = time.perf_counter()
    for step in job.remaining_steps():
        verdict, ended_s = run_step(job, step, ended_s=ended_s)
        job.ledger.enter("save")
        # A host that has no rank afterwards takes its snapshots with it.
        by_time = verdict.save or (verdict.regroup and job.links is not None)
        if job.saver.is_due(step, by_time=by_time):
            publish_rest(job)
        job.saver.save_if_due(step, by_time=by_time)
        job.memory.save_if_due(step)
        job.listeners.status.enter("training", step)
        if verdict.stop and step < job.rules.total_steps:
            return "stopped"
        kept = verdict.in_memory or job.saver.is_due(step, by_time=by_time)
        if verdict.regroup and kept and step < job.rules.total_steps:
            return "regrouped"
    # The last steps may have been left out.
    job.progress.step = max(job.progress.step, job.rules.total_steps)
    return "finished"


def run_step(job: Job, step: int, *, ended_s: float) -> tuple[Verdict, float]:
    """Train one step, report it, and act on wrong numbers; the verdict, and when it ended.

    `ended_s` is when the step before ended, so that nothing between two steps goes uncounted.
    Raises NumericError where wrong numbers end the run.
    """
    begin_s = time.perf_counter()
    job.ledger.begin_step(step, job.feed.phase(step))
    work = job.feed.take(step)
    data_s = time.perf_counter() - begin_s
    job.ledger.begin_work(job.rules.flops(work.own_tokens, work.own_squared_tokens))
    seed_step(job, step)
    result = train_step(job, work)
    advance(job, work, result.verdict)
    rearrange_experts(job, step, result.verdict)
    now_s = time.perf_counter()
    tell_followers(job, step, trained_s=now_s - begin_s - data_s, waited_s=data_s)
    report = make_report(job, work, result, data_s=data_s, step_s=now_s - ended_s)
    if job.environment.rank % job.assembly.layout.island_ranks == 0:
        job.planner.observe(report.plan, report.measured)
    for told in [report] if job.islands is None else job.islands.settle(report):
        publish(job, told)
    job.ledger.enter("save")
    went_back = job.numeric.act(result.decision, result.verdict, work.sequences)
    # What a rollback left is on disk soon, and needs no way there a second time.
    return replace(result.verdict, save=result.verdict.save or went_back), now_s


def seed_step(job: Job, step: int) -> None:
    """Make every random choice of a step a function of (seed, step, rank)."""
    ranks = job.environment.world_size
    torch.manual_seed((job.rules.seed * 1_000_003 + step) * ranks + job.environment.rank)


def advance(job: Job, work: StepWork, verdict: Verdict) -> None:
    """Count the step."""
    job.progress.step = work.plan.step
    job.progress.tokens += work.num_tokens
    job.progress.updates += verdict.commit
    job.progress.skipped_in_row = 0 if verdict.commit else job.progress.skipped_in_row + 1


def rearrange_experts(job: Job, step: int, verdict: Verdict) -> None:
    """Let experts follow their loads, every few steps, where the recipe asks for it."""
    interval = job.rules.rebalance_interval_steps
    if job.elastic is None or not interval:
        return
    job.elastic.observe(verdict.expert_load)
    if step % interval or not verdict.commit:
        return
    moved = job.elastic.rearrange()
    if moved and job.environment.rank == 0:
        append_event(
            job.folder.events, now_s=time.time(), kind="experts_moved", step=step, moved=moved
        )


def tell_followers(job: Job, step: int, *, trained_s: float, waited_s: float) -> None:
    """Say that the step is done, and give its weights to those who work with them."""
    job.followers.follow(
        StepDone(step=step, newest=job.saver.newest, trained_s=trained_s, waited_s=waited_s)
    )


def make_report(
    job: Job, work: StepWork, result: StepResult, *, data_s: float, step_s: float
) -> StepReport:
    """Put together what the step measured."""
    verdict = result.verdict
    flops = job.rules.flops(work.num_tokens, work.squared_tokens)
    peak = job.planner.hardware.peak_flops_per_s * job.environment.world_size
    return StepReport(
        step=work.plan.step,
        total_steps=job.rules.total_steps,
        time=time.time(),
        loss=verdict.loss_sum / work.num_targets,
        aux_loss=verdict.aux_sum / work.num_targets,
        grad_norm=verdict.grad_norm,
        lr=result.learning_rate,
        tokens=job.progress.tokens,
        step_tokens=work.num_tokens,
        step_s=step_s,
        mfu=flops / step_s / peak,
        memory_gib=device_memory_gib(device_of(job.environment)),
        host_memory_gib=job.listeners.host_memory_gib(),
        expert_imbalance=_imbalance(verdict, job.assembly.architecture),
        dropped_share=verdict.dropped / max(float(verdict.expert_load.sum()), 1.0),
        skipped=not verdict.commit,
        world_size=job.environment.world_size,
        plan=work.plan,
        measured=replace(result.measured, data_s=data_s),
        bytes_sent=result.bytes_sent,
        snapshot_wait_s=result.snapshot_wait_s,
        movement=job.assembly.optimizer.movement if verdict.commit else None,
        activations=result.activations,
        exchanged=result.exchanged,
        islands=result.islands,
        figures=work.figures.with_sums(verdict.figures),
    )


def publish_rest(job: Job) -> None:
    """Publish what waits for news of other islands: no checkpoint is ahead of the metrics."""
    if job.islands is not None:
        for report in job.islands.settle_all():
            publish(job, report)


def publish(job: Job, report: StepReport) -> None:
    """Give the report to everyone who wants it."""
    if job.environment.rank == 0:
        for sink in job.listeners.sinks:
            sink.write(report)
    job.listeners.on_report(report)


def _imbalance(verdict: Verdict, architecture: Architecture) -> float:
    load = verdict.expert_load
    if load.numel() == 0:
        return 0.0
    # Layers of a pyramid have fewer experts than the widest; the rest of their row is empty.
    experts = torch.tensor([architecture.experts_of(n) for n in architecture.mixture_layers])
    mean = (load.sum(dim=1) / experts).clamp(min=1e-9)
    return float((load.amax(dim=1) / mean).max())
