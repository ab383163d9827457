"""A seeded world of trainers, workers and reward functions where anything is lost at any message.

Messages of a party are delivered in order, whenever the schedule says, and are lost with it.
"""

import json
from collections import deque
from random import Random

from tests.trainer.rl.conducting.parties import SimTrainer, SimWorker, rewards_of
from trainer.rl.conducting.beginning import merged_state
from trainer.rl.conducting.conductor import Conductor
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.messages import (
    Answer,
    Committed,
    Publish,
    Published,
    PublishFailed,
    Pulse,
    TrainerReady,
    TrainOn,
    Updated,
)
from trainer.rl.rewards.outcome import RewardResult


class World:
    def __init__(self, seed, *, losses=0.0, last_version=6, task_size=None, **rl):
        self.random = Random(seed)
        self.losses = losses
        settings = {"prompts_per_step": 3, "samples_per_prompt": 2} | rl
        self.rl = RlConfig(**settings)
        self.rollout = RolloutConfig(workers=2, prompts_per_worker=4)
        self.last_version, self.task_size = last_version, task_size
        self.now_s = 0.0
        self.persisted = None
        self.events, self.publishes, self.changes, self.starts = [], 0, 0, 0
        self.names = self.weights = 0
        self.trained = []
        """(group, weights of its oldest answers' tokens, versions) of each step that counts."""
        self.saved = [0]
        self.rewards = deque()
        self.workers = {}
        self.outstanding = 0
        self.lineage = [self.new_weights()]
        self.trainer = None
        self.begin()

    def begin(self):
        self.known, self.written = None, []
        self.conductor = Conductor(
            self.rl,
            self.rollout,
            seed=1,
            last_version=self.last_version,
            store=("127.0.0.1", 1),
            task_size=self.task_size,
            state=self.persisted,
        )
        self.workers, self.rewards = {}, deque()
        for _ in range(2):
            self.bring_up()
        self.start_trainer(self.saved[-1])

    def new_weights(self):
        self.weights += 1
        return self.weights

    def start_trainer(self, version):
        self.saved = [v for v in self.saved if v <= version]
        self.trained = self.trained[:version]
        self.lineage = self.lineage[: version + 1]
        self.trainer = SimTrainer(version, self.lineage)
        self.trainer.outbox.append(TrainerReady(version=version, trainers=2))
        self.starts += 1

    def bring_up(self):
        name = f"rollout {self.names}"
        self.names += 1
        self.changes += 1
        self.workers[name] = SimWorker(name)
        self.do(self.conductor.rollout_up(name, self.now_s))

    def do(self, actions):
        if actions.persist:
            self.written.append(json.loads(json.dumps(self.conductor.snapshot(self.known))))
            self.known = self.conductor.records
            self.persisted = merged_state(self.written)
            assert self.persisted == json.loads(json.dumps(self.conductor.snapshot()))
        assert actions.persist or not any(isinstance(m, TrainOn) for m in actions.to_trainer)
        for message in actions.to_trainer:
            self.publishes += isinstance(message, Publish)
            if self.trainer is not None and self.trainer.heard:
                self.outstanding += isinstance(message, TrainOn)
                self.trainer.inbox.append(message)
        for name, messages in actions.to_rollouts.items():
            for message in messages:
                if isinstance(message, Answer) and self.rl.max_staleness == 0:
                    assert self.outstanding == 0, "nothing starts while a step is under way"
                if name in self.workers:
                    self.workers[name].inbox.append(message)
        self.rewards.extend(actions.rewards)
        self.events.extend(actions.events)
        for name in actions.replace:
            self.workers.pop(name, None)
            self.bring_up()

    def lose_trainers(self):
        on_disk = self.random.random() < 0.5
        version = self.saved[-1] if on_disk else self.trainer.version
        if on_disk and len(self.saved) > 1 and self.random.random() < 0.2:
            version = self.saved[-2]
        self.trainer = None
        self.outstanding = 0
        if self.random.random() < 0.7:
            self.do(self.conductor.trainers_lost(self.now_s))
        self.start_trainer(version)

    def lose_worker(self):
        name = self.random.choice(sorted(self.workers))
        del self.workers[name]
        self.do(self.conductor.rollout_lost(name, "killed", self.now_s))
        self.bring_up()

    def lose_driver(self):
        self.trainer = None
        self.outstanding = 0
        self.begin()

    def turn(self):
        self.now_s += 0.05
        draw = self.random.random()
        if draw < self.losses:
            self.random.choice([self.lose_trainers, self.lose_worker, self.lose_driver])()
            return
        moves = [lambda: self.do(self.conductor.tick(self.now_s))]
        trainer = self.trainer
        if trainer.inbox:
            moves.append(self.trainer_takes)
        if trainer.outbox:
            moves += [self.trainer_tells] * 2
        if trainer.publishing:
            moves.append(self.publish)
        if self.rewards:
            moves.append(self.judge)
        for worker in self.workers.values():
            if worker.inbox:
                moves.append(lambda w=worker: w.take(w.inbox.popleft(), self.random))
            if worker.outbox:
                moves.append(lambda w=worker: self.worker_tells(w))
            if worker.leases:
                moves += [lambda w=worker: w.work(self.random)] * 2
            elif self.random.random() < 0.1:
                pulse = Pulse(version=None, running=0, drawn_tokens=3, busy_s=1.0, idle_s=0.5)
                worker.outbox.append(pulse)
        self.random.choice(moves)()

    def worker_tells(self, worker):
        message = worker.outbox.popleft()
        self.do(self.conductor.on_rollout(worker.name, message, self.now_s))

    def trainer_tells(self):
        message = self.trainer.outbox.popleft()
        self.trainer.heard = True
        self.do(self.conductor.on_trainer(message, self.now_s))

    def trainer_takes(self):
        trainer, message = self.trainer, self.trainer.inbox.popleft()
        if isinstance(message, Publish):
            trainer.place, trainer.publishing = message.channel, True
            return
        self.outstanding -= 1
        assert message.version == trainer.version
        assert len(self.trained) == message.version
        self.check(message)
        groups = tuple(dict.fromkeys(sample.group for sample in message.samples))
        self.trained.append(groups)
        trainer.version += 1
        self.lineage.append(self.new_weights())
        if self.random.random() < 0.4:
            self.saved.append(trainer.version)
        trainer.outbox.append(
            Committed(version=message.version, saved=self.saved[-1], trained_s=1.0, waited_s=0.5)
        )
        trainer.publishing = trainer.place is not None

    def check(self, message):
        """Tokens are of weights that count, and none is too stale."""
        for sample in message.samples:
            for weights, version in zip(sample.tokens[1:], sample.versions[1:], strict=True):
                assert self.lineage[version] == weights, "tokens of weights that were undone"
                assert 0 <= message.version - version <= self.rl.max_staleness

    def publish(self):
        trainer = self.trainer
        members = trainer.place.names[trainer.place.trainers :]
        gone = tuple(name for name in members if name not in self.workers)
        if not gone and self.losses and self.random.random() < 0.02:
            gone = (self.random.choice(members),)
        version, prefix = trainer.version, trainer.place.prefix
        if gone:
            trainer.publishing, trainer.place = False, None
            trainer.outbox.append(
                PublishFailed(version=version, reason="gone", culprits=gone, prefix=prefix)
            )
        elif all(self.workers[name].prefix == prefix for name in members):
            trainer.publishing = False
            trainer.outbox.append(Published(version=version, sent_bytes=1, seconds={"total": 1.0}))
            for name in members:
                worker = self.workers[name]
                worker.weights, worker.version = self.lineage[version], version
                told = Updated(version=version, paused_s=0.1, received_bytes=1, prefix=prefix)
                worker.outbox.append(told)

    def judge(self):
        request = self.rewards.popleft()
        values = rewards_of(request.reference["number"])
        result = RewardResult(number=request.number, rewards=values)
        self.do(self.conductor.on_rewards([result], self.now_s))

    def run(self, turns=40_000):
        for _ in range(turns):
            if self.conductor.done:
                return self
            self.turn()
        raise AssertionError(f"no end: {self.conductor.status()}")
