"""A conductor with workers and trainers that are spoken to by hand."""

from tests.trainer.rl.conducting.parties import Lease
from trainer.rl.conducting.conductor import Conductor
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.ledger_records import Kept
from trainer.rl.messages import (
    Answer,
    Answered,
    Committed,
    Publish,
    Published,
    TrainerReady,
    TrainOn,
    Updated,
)


class Desk:
    """Trainers are ready from the start."""

    def __init__(self, state=None, version=0, workers=1, last_version=4, **rl):
        settings = {"prompts_per_step": 2, "samples_per_prompt": 2, "max_staleness": 1} | rl
        self.conductor = Conductor(
            RlConfig(**settings),
            RolloutConfig(workers=workers, prompts_per_worker=4),
            seed=1,
            last_version=last_version,
            store=("h", 1),
            state=state,
        )
        self.now_s = 0.0
        self.leases, self.events, self.steps, self.requests = {}, [], [], []
        self.places, self.replaced, self.told = [], [], []
        for worker in range(workers):
            self.note(self.conductor.rollout_up(f"w{worker}", 0.0))
        self.trainer(TrainerReady(version=version, trainers=1))

    def note(self, actions):
        self.events += actions.events
        self.requests += actions.rewards
        self.replaced += actions.replace
        self.steps += [m for m in actions.to_trainer if isinstance(m, TrainOn)]
        self.places += [m.channel for m in actions.to_trainer if isinstance(m, Publish)]
        for worker, messages in actions.to_rollouts.items():
            self.told += [(worker, message) for message in messages]
            asked = [m for m in messages if isinstance(m, Answer)]
            self.leases |= {m.number: (worker, m.lease_id, m.kept) for m in asked}
        return actions

    def trainer(self, message):
        return self.note(self.conductor.on_trainer(message, self.now_s))

    def worker(self, message, name="w0"):
        return self.note(self.conductor.on_rollout(name, message, self.now_s))

    def tick(self, seconds):
        self.now_s += seconds
        return self.note(self.conductor.tick(self.now_s))

    def update(self, version, name="w0"):
        prefix = self.places[-1].prefix
        self.trainer(Published(version=version, sent_bytes=1, seconds={}))
        updated = Updated(version=version, paused_s=0.5, received_bytes=1, prefix=prefix)
        return self.worker(updated, name)

    def answer(self, number, scores=(0.0, 1.0), version=0):
        worker, lease_id, _ = self.leases.pop(number)
        kept = kept_of(number, scores, version)
        return self.worker(Answered(lease_id=lease_id, kept=kept), worker)

    def commit(self, version, saved=None):
        self.trainer(Committed(version=version, saved=saved, trained_s=2.0, waited_s=0.25))

    def kinds(self):
        return [event["kind"] for event in self.events]


def kept_of(number, scores, version):
    plain = Lease(number, 1, [7], [version]).kept(done=True)
    answers = plain.payload["answers"]
    for answer, score in zip(answers, scores, strict=True):
        answer["score"] = score
    return Kept(payload=plain.payload, oldest=version, newest=version)
