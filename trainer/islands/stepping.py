"""What a step does with the other islands after its update."""

import time
from dataclasses import replace

from comms.groups import device_of
from comms.outer.diloco import Merged
from trainer.feed import StepWork
from trainer.islands.exchange import Islands
from trainer.islands.news import News
from trainer.job import Job
from trainer.run_folder import append_event
from trainer.vote import Verdict


def exchange_outer(
    job: Job, islands: Islands, work: StepWork, verdict: Verdict
) -> tuple[Verdict, float]:
    """Tell the other islands of the step, and send and merge what is due.

    Returns the verdict with what all islands agreed on in place of what this one wishes, and the
    seconds that a merge was waited for.
    """
    islands.tell(
        News(
            step=work.plan.step,
            loss_sum=verdict.loss_sum,
            aux_sum=verdict.aux_sum,
            targets=work.num_targets,
            grad_norm=verdict.grad_norm,
            skipped=not verdict.commit,
            stop=verdict.stop,
            save=verdict.save,
            busy_s=islands.busy_s,
        )
    )
    _note_advice(job, islands, work.plan.step)
    merged = islands.exchange(work.plan.step)
    agreed = replace(verdict, stop=verdict.heard_stop, save=verdict.heard_save)
    if merged is None:
        return agreed, 0.0
    optimizer = job.assembly.optimizer
    if optimizer.placement != "device" and device_of(job.environment).type != "cpu":
        # It keeps weights of its own beside those on the device, and takes these over.
        optimizer.restored(optimizer.moments(), optimizer.updates)
    job.assembly.weights.publish()
    _note_left_out(job, islands, work.plan.step, merged)
    return agreed, merged.waited_s


def _note_advice(job: Job, islands: Islands, step: int) -> None:
    """Say that other shares of the batch would be faster."""
    advice, islands.advice = islands.advice, None
    if advice is not None and job.environment.rank == 0:
        append_event(
            job.folder.events,
            now_s=time.time(),
            kind="islands_uneven",
            step=step,
            step_s=[round(seconds, 4) for seconds in advice.step_s],
            shares=list(advice.shares),
            advice=f"with comms.island.shares={list(advice.shares)} steps would be "
            f"{advice.faster:.2f} times as fast",
        )


def _note_left_out(job: Job, islands: Islands, step: int, merged: Merged) -> None:
    """Say which islands had nothing finite to give, and took what the others agreed on."""
    left_out = [n for n, finite in zip(islands.members, merged.finite, strict=True) if not finite]
    if left_out and job.environment.rank == 0:
        append_event(
            job.folder.events,
            now_s=time.time(),
            kind="islands_left_out",
            step=step,
            islands=left_out,
            fragment=merged.fragment,
            cause="the outer gradient is not finite",
        )
