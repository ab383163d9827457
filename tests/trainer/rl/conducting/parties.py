"""Workers and trainers of a simulated run. A token is the name of the weights that drew it:
versions that are trained again are other weights.
"""

from collections import deque
from dataclasses import dataclass, field
from math import nan

import numpy as np

from trainer.rl.messages import Answer, Answered, GiveUp, Join, Under
from trainer.rl.payload import AnswerRecord, PromptRecord

EQUAL, FAULT = 5, 11
"""Prompts whose number is a multiple have equal rewards, or none."""


def is_useful(number: int) -> bool:
    return bool(number % EQUAL and number % FAULT)


def rewards_of(number: int) -> tuple[float, float]:
    if number % FAULT == 0:
        return (nan, 1.0)
    return (1.0, 1.0) if number % EQUAL == 0 else (0.0, 1.0)


def answer_record(weights, versions, score) -> AnswerRecord:
    count = 1 + len(weights)
    floats = np.zeros(count, np.float32)
    return AnswerRecord(
        prompt_tokens=1,
        tokens=np.array([-1, *weights], np.int32),
        loss_mask=np.array([0] + [1] * len(weights), np.int8),
        log_probs=floats,
        model_log_probs=floats,
        kept_log_mass=floats,
        versions=np.array([-1, *versions], np.int32),
        ended=score is not None,
        score=score,
    )


@dataclass
class Lease:
    """Two answers of equal length that grow together."""

    number: int
    wanted: int
    weights: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def kept(self, *, done: bool):
        scores = rewards_of(self.number) if done else (None, None)
        return PromptRecord(
            prompt=f"prompt {self.number}",
            reference={"number": self.number},
            answers=tuple(answer_record(self.weights, self.versions, s) for s in scores),
        ).kept()


@dataclass
class SimWorker:
    name: str
    inbox: deque = field(default_factory=deque)
    outbox: deque = field(default_factory=deque)
    prefix: str = ""
    weights: int | None = None
    version: int = -1
    leases: dict[int, Lease] = field(default_factory=dict)

    def take(self, message, random):
        match message:
            case Join(channel=channel):
                self.prefix = channel.prefix
            case GiveUp(lease_ids=ids):
                for lease_id in ids or tuple(self.leases):
                    self.leases.pop(lease_id, None)
            case Answer():
                assert self.weights is not None, "nothing is asked before the first weights"
                lease = Lease(message.number, random.randint(1, 4))
                if message.kept is not None:
                    begun = PromptRecord.from_plain(message.kept.payload).answers[0]
                    lease.weights = begun.tokens[1:].tolist()
                    lease.versions = begun.versions[1:].tolist()
                self.leases[message.lease_id] = lease

    def work(self, random):
        lease_id = random.choice(sorted(self.leases))
        lease = self.leases[lease_id]
        lease.weights.append(self.weights)
        lease.versions.append(self.version)
        if len(lease.weights) >= lease.wanted:
            del self.leases[lease_id]
            self.outbox.append(Answered(lease_id=lease_id, kept=lease.kept(done=True)))
        elif random.random() < 0.5:
            self.outbox.append(Under(lease_id=lease_id, kept=lease.kept(done=False)))


@dataclass
class SimTrainer:
    version: int
    lineage: list[int]
    """Weights of each version up to the present one."""
    inbox: deque = field(default_factory=deque)
    outbox: deque = field(default_factory=deque)
    place: object = None
    publishing: bool = False
    heard: bool = False
    """Whether it was heard of: what is said before is to the ranks that were there before."""
