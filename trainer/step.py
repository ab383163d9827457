"""One optimizer step: forward, backward, vote, update."""

from dataclasses import dataclass, replace

from comms.compression.config import WHOLE, StepChoice
from comms.groups import device_of
from parallel.replicas import Replicas
from trainer.exchanged import Exchanged
from trainer.feed import StepWork
from trainer.islands.stepping import exchange_outer
from trainer.job import Job
from trainer.metrics import IslandFigures
from trainer.model.layers import LossParts
from trainer.movement import ActivationMovement
from trainer.numeric.policy import Decision
from trainer.planner.plan import StepPlan, Terms
from trainer.vote import Ballot, Verdict, vote


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step came to."""

    verdict: Verdict
    decision: Decision
    """What becomes of the step where its numbers are wrong."""

    learning_rate: float
    measured: Terms
    """data_s is left at zero: the loop knows it."""

    bytes_sent: dict[str, int]
    islands: IslandFigures | None
    """None where there is one island. The gap of losses is known some steps later."""

    snapshot_wait_s: float
    """How long the snapshot of the step before was waited for."""

    activations: ActivationMovement | None
    """None where none can move."""

    exchanged: Exchanged | None = None
    """What replicas sent each other compressed; None where they send whole gradients."""


def train_step(job: Job, work: StepWork) -> StepResult:
    """Train on one global batch. All ranks call it with the same plan.

    Losses are sums divided by the step's global target count, so neither ranks nor rounds change
    the gradient. The update is made only if all ranks of the island find losses and gradients
    right (`trainer/numeric/policy.py`); what islands exchange goes on either way, or they would
    lose step.
    """
    step = work.plan.step
    heard_stop, heard_save = (False, False) if job.islands is None else job.islands.asked(step)
    job.assembly.activations.follow(work.plan.activation)
    if job.links is not None:
        job.links.follow(work.plan)
    replicas = job.assembly.replicas
    if replicas is not None:
        replicas.choose(StepChoice.parse(work.plan.compression))
    job.ledger.take()  # what a checkpoint's probe sent is not this step's
    job.stopwatch.mark("begin")
    with job.assembly.activations.watched(step):
        parts = job.assembly.rounds.train(
            [batch.to(device_of(job.environment)) for batch in work.batches],
            [job.assembly.sharing(group) for group in work.groups],
            divisor=work.divisor / job.numeric.planted.at(step, job.environment.rank),
        )
    job.assembly.gradients.finish()
    job.stopwatch.mark("summed")
    snapshot_wait_s = job.memory.settle()
    verdict = _vote(job, step, parts, heard_stop=heard_stop, heard_save=heard_save)
    decision = job.numeric.judge(verdict, work.num_targets)
    verdict = replace(verdict, vetoed=decision.action != "train")
    job.stopwatch.mark("voted")
    rate = job.rules.schedule(step)
    if replicas is not None:
        replicas.settle(commit=verdict.commit)
    if verdict.commit:
        _update(job, work.plan, verdict, rate)
    merge_wait_s = 0.0
    if job.islands is not None:
        verdict, merge_wait_s = exchange_outer(job, job.islands, work, verdict)
    job.assembly.gradients.zero()
    job.stopwatch.mark("updated")
    return _result(
        job, verdict, decision, rate, merge_wait_s=merge_wait_s, snapshot_wait_s=snapshot_wait_s
    )


def _vote(job: Job, step: int, parts: LossParts, *, heard_stop: bool, heard_save: bool) -> Verdict:
    layout = job.assembly.layout
    # Before any number is read: the device goes from the backward to this without a pause.
    squared_norm = job.assembly.gradients.squared_norm()
    return vote(
        Ballot(
            step=step,
            # Ranks that share every product have the same losses.
            loss_sum=float(parts.loss_sum) / layout.tp,
            aux_sum=float(parts.aux_sum) / layout.tp,
            squared_norm=float(squared_norm),
            stop=job.listeners.should_stop(),
            save=job.saver.due_by_time(),
            expert_load=parts.expert_load / layout.tp,
            dropped=float(parts.dropped) / layout.tp,
            bad_gradient=job.numeric.watch.take(),
            figures=parts.figures / layout.tp,
            heard_stop=heard_stop,
            heard_save=heard_save,
            regroup=job.islands is None and job.listeners.should_regroup(),
            in_memory=job.memory.will_keep(step),
        ),
        rank=job.environment.rank % layout.island_ranks,
        world_size=layout.island_ranks,
        first_rank=layout.island_of(job.environment.rank) * layout.island_ranks,
        group=job.assembly.group,
        ledger=job.ledger,
    )


def _update(job: Job, plan: StepPlan, verdict: Verdict, rate: float) -> None:
    """Clip by the global norm and step. The norm is known to all ranks from the vote."""
    clipping = 1.0
    if verdict.grad_norm > job.rules.max_grad_norm:
        clipping = job.rules.max_grad_norm / (verdict.grad_norm + 1e-6)
    job.assembly.optimizer.update(rate, grad_scale=clipping, share=plan.optimizer_share)
    job.assembly.weights.publish()
    if job.rules.bias_update_rate > 0.0:
        job.assembly.weights.model.update_expert_bias(
            verdict.expert_load, job.rules.bias_update_rate
        )


def _result(
    job: Job,
    verdict: Verdict,
    decision: Decision,
    rate: float,
    *,
    merge_wait_s: float,
    snapshot_wait_s: float,
) -> StepResult:
    job.ledger.end_step()
    bytes_sent, waited_s = job.ledger.take()
    outer_bytes, islands_s = ({}, 0.0) if job.islands is None else job.islands.ledger.take()
    moved = job.assembly.activations.take_movement()
    copies_s = 0.0 if moved is None else moved.exposed_s
    watch, replicas = job.stopwatch, job.assembly.replicas
    # Before the marks are read: the device goes from the update to this without a pause.
    exchanged = None if replicas is None else _exchanged(replicas, bytes_sent)
    return StepResult(
        verdict=verdict,
        decision=decision,
        learning_rate=rate,
        measured=Terms(
            compute_s=max(0.0, watch.seconds("begin", "summed") - waited_s - copies_s),
            communication_s=waited_s,
            copies_s=copies_s,
            update_s=max(0.0, watch.seconds("voted", "updated") - merge_wait_s),
            bubble_s=watch.seconds("summed", "voted"),
            islands_s=islands_s,
        ),
        bytes_sent={**bytes_sent, **outer_bytes},
        islands=None
        if job.islands is None
        else IslandFigures(loss_gap=0.0, wait_s=islands_s, sent_bytes=sum(outer_bytes.values())),
        snapshot_wait_s=snapshot_wait_s,
        activations=moved,
        exchanged=exchanged,
    )


def _exchanged(replicas: Replicas, bytes_sent: dict[str, int]) -> Exchanged:
    """Of the step that was just settled."""
    return Exchanged(
        sent_bytes=sum(n for name, n in bytes_sent.items() if name.startswith("replica/")),
        dense_bytes=replicas.step_bytes(WHOLE),
        waited_s=replicas.take_waited_s(),
        error_norm=replicas.exchange.error_norm(),
    )
