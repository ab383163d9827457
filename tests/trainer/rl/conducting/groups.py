"""Judged groups, made by hand."""

import numpy as np

from trainer.rl.conducting.judging import Judged
from trainer.rl.groups import judge
from trainer.rl.ledger_records import Kept, Record, State
from trainer.rl.payload import AnswerRecord, PromptRecord


def answer(tokens=3, score=0.0, final=None, version=0, cut=False):
    size = tokens + 1
    return AnswerRecord(
        prompt_tokens=1,
        tokens=np.arange(size, dtype=np.int32),
        loss_mask=np.array([0] + [1] * tokens, np.int8),
        log_probs=np.full(size, -0.5, np.float32),
        model_log_probs=np.full(size, -0.25, np.float32),
        kept_log_mass=np.array([0.0] + [-0.125] * tokens, np.float32),
        versions=np.array([-1] + [version] * tokens, np.int32),
        ended=True,
        cut=cut,
        text=f"text {score}",
        final=final,
        score=score,
    )


def record(number, answers):
    prompt = PromptRecord(prompt=f"prompt {number}", reference={}, answers=tuple(answers))
    return Record(number=number, state=State.FINISHED, kept=prompt.kept())


def group(number, rewards, *, tokens=None, finals=None, version=0):
    tokens = [3] * len(rewards) if tokens is None else tokens
    finals = [None] * len(rewards) if finals is None else finals
    answers = [
        answer(count, reward, final, version)
        for count, reward, final in zip(tokens, rewards, finals, strict=True)
    ]
    made = record(number, answers)
    kept = made.kept if made.kept is not None else Kept(payload={}, oldest=0, newest=0)
    return Judged(
        number=number,
        kept=kept,
        prompt=PromptRecord.from_plain(kept.payload),
        rewards=tuple(rewards),
        verdict=judge(number, rewards, samples=len(rewards)),
    )
