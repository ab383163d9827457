"""Small real work for processes that sample, and for ranks that train on what they sampled."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cluster.rank import RankControl, RankSpec
from cluster.reading import Outcome
from cluster.rl.rollout_worker import RolloutControl, RolloutSpec
from trainer.errors import DataError
from trainer.rl.ledger_records import Kept
from trainer.rl.mailbox import MailboxClosedError
from trainer.rl.messages import (
    Answer,
    Answered,
    Committed,
    Join,
    Publish,
    Published,
    TrainerReady,
    TrainOn,
    Updated,
)
from trainer.rl.payload import AnswerRecord, PromptRecord
from trainer.run_folder import RunFolder, append_line, read_lines

STEP_S = 0.1


def echo(spec: RolloutSpec, control: RolloutControl) -> None:
    """Answers every prompt with its own name, at once."""
    while True:
        try:
            message = control.post.inbox.take(0.05)
        except MailboxClosedError:
            return
        if isinstance(message, Answer):
            kept = Kept(payload={"by": spec.name, "number": message.number}, oldest=0, newest=0)
            control.post.outbox.put(Answered(lease_id=message.lease_id, kept=kept))


def refuse(spec: RolloutSpec, control: RolloutControl) -> None:
    """Cannot work."""
    raise DataError(f"{spec.name}: questions.jsonl:3 has no field prompt")


def sample(spec: RolloutSpec, control: RolloutControl) -> None:
    """Answers without a model: one answer of each prompt is right."""
    for message, version in prompts(spec, control):
        time.sleep(STEP_S / 8)
        control.post.outbox.put(answered(message, version, spec.job.rl.samples_per_prompt))


def prompts(spec: RolloutSpec, control: RolloutControl) -> Iterator[tuple[Answer, int]]:
    """Each with the version of the weights that answers it. Weights are taken by their number,
    which the ranks leave in the run folder."""
    version = 0
    while True:
        try:
            message = control.post.inbox.take(0.01)
        except MailboxClosedError:
            return
        newest = newest_version(spec.job.run.dir, spec.job.run.name)
        if isinstance(message, Join) or newest > version:
            version = newest
            control.post.outbox.put(Updated(version=version, paused_s=0.0, received_bytes=0))
        if isinstance(message, Answer):
            yield message, version


def answered(message: Answer, version: int, samples: int) -> Answered:
    """So many answers, of which one is right."""
    answers = tuple(_answer(version, score) for score in (1.0, *[0.0] * (samples - 1)))
    kept = PromptRecord(prompt="?", reference={}, answers=answers).kept()
    assert kept is not None
    return Answered(lease_id=message.lease_id, kept=kept)


def train(spec: RankSpec, control: RankControl) -> Outcome:
    """Notes which prompts each step trains. A later generation, or a later start, goes back by one
    step, as one that lost its newest state does."""
    folder = RunFolder.of(spec.job.run)
    last = spec.job.train.steps
    if spec.environment.rank != 0:
        return Outcome(kind="finished", step=last, checkpoint=None)
    version = max(0, len(history(folder)) - 1)
    control.status.enter("training", version)
    control.post.outbox.put(TrainerReady(version=version, trainers=spec.environment.world_size))
    while version < last:
        message = control.post.inbox.take()
        if isinstance(message, Publish):
            control.post.outbox.put(Published(version=version, sent_bytes=0, seconds={}))
        if isinstance(message, TrainOn):
            assert message.version == version
            time.sleep(STEP_S)
            version += 1
            commit(control, folder, message, last=last, trained_s=STEP_S)
    return Outcome(kind="finished", step=last, checkpoint=None)


def commit(
    control: RankControl, folder: RunFolder, message: TrainOn, *, last: int, trained_s: float
) -> None:
    """Note and tell that a step is done."""
    append_line(
        folder.root / "trained.jsonl",
        {
            "version": message.version,
            "groups": sorted({sample.group for sample in message.samples}),
            "oldest": min(int(s.versions.max()) for s in message.samples),
        },
    )
    control.post.outbox.put(
        Committed(version=message.version, saved=None, trained_s=trained_s, waited_s=0.0)
    )
    control.report(_record(message.version + 1, last, message))
    control.status.enter("training", message.version + 1)


def history(folder: RunFolder) -> dict[int, list[int]]:
    """Prompts of each version that counts: of steps trained again, the last time."""
    found: dict[int, list[int]] = {}
    for record in read_lines(folder.root / "trained.jsonl"):
        found = {v: g for v, g in found.items() if v < record["version"]}
        found[record["version"]] = record["groups"]
    return found


def newest_version(folder: str, name: str) -> int:
    """Of the weights."""
    return len(history(RunFolder(Path(folder) / name)))


def _answer(version: int, score: float) -> AnswerRecord:
    numbers = np.zeros(2, np.float32)
    return AnswerRecord(
        prompt_tokens=1,
        tokens=np.array([5, 7], np.int32),
        loss_mask=np.array([0, 1], np.int8),
        log_probs=numbers,
        model_log_probs=numbers,
        kept_log_mass=numbers,
        versions=np.array([-1, version], np.int32),
        ended=True,
        text="x",
        score=score,
    )


def _record(step: int, total: int, message: TrainOn) -> dict[str, float]:
    """A line of metrics.jsonl, as far as it is shown."""
    names = ("lr", "tokens_per_s", "mfu", "memory_gib", "skipped")
    return {
        **dict.fromkeys(names, 0.0),
        "step": step,
        "step_s": STEP_S,
        "loss": 1.0,
        "grad_norm": 1.0,
        "total_steps": total,
        **message.figures,
    }
