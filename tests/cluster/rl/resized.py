"""Ranks and workers that tell how long they were busy, so that a run changes its split.

First sampling has most work; a second set of ranks, if it is one rank, then has more in training.
What is told is in units of which 50 make a second.
"""

import time
from collections import deque

from cluster.rank import RankControl, RankSpec
from cluster.reading import Outcome
from cluster.rl.rollout_worker import RolloutControl, RolloutSpec
from tests.cluster.rl.payloads import answered, commit, history, prompts
from trainer.rl.messages import Publish, Published, Pulse, TrainerReady, TrainOn
from trainer.run_folder import RunFolder

PLACES = 4

PER_S = 50.0

PROMPT = 2.0
"""Of a worker, for each prompt."""

LIGHT, ALONE, HEAVY = 2.0, 2.5, 18.0
"""Of all ranks together, for each step; `ALONE` is that of a run that begins with one rank."""

ALONE_STEPS = 12
"""Of a run that begins with one rank, after which it waits for others to sample."""

TURN_STEPS = 13
"""Of the second set of ranks, after which training has most work."""


def sample_by_turns(spec: RolloutSpec, control: RolloutControl) -> None:
    """Answers without a model, and tells of each answer."""
    for message, version in prompts(spec, control):
        time.sleep(PROMPT / PER_S)
        pulse = Pulse(version=version, running=1, drawn_tokens=2, busy_s=PROMPT, idle_s=0.0)
        done = answered(message, version, spec.job.rl.samples_per_prompt)
        control.post.outbox.put(done, pulse)


def train_by_turns(spec: RankSpec, control: RankControl) -> Outcome:
    """Trains while everybody is there, and leaves between two steps when asked to."""
    folder, last, ranks = RunFolder.of(spec.job.run), spec.job.train.steps, _ranks(spec)
    begin = version = len(history(folder))
    control.status.enter("training", version)
    waiting: deque[TrainOn] = deque()
    workers = 0
    if spec.environment.rank == 0:
        control.post.outbox.put(TrainerReady(version=version, trainers=ranks))
    while version < last and not control.should_regroup():
        message = control.post.inbox.take(0.02)
        if isinstance(message, Publish):
            workers = len(message.channel.names) - ranks
            control.post.outbox.put(Published(version=version, sent_bytes=0, seconds={}))
        if isinstance(message, TrainOn):
            waiting.append(message)
        alone = ranks == 1 and not begin and version < ALONE_STEPS
        if waiting and (alone or workers == PLACES - ranks):
            busy = _work(ranks, begin, version) / ranks
            time.sleep(busy / PER_S)
            assert waiting[0].version == version
            commit(control, folder, waiting.popleft(), last=last, trained_s=busy)
            version += 1
        if spec.environment.rank and len(history(folder)) == last:
            version = last
    kind = "finished" if version == last else "regrouped"
    return Outcome(kind=kind, step=version, checkpoint=None)


def _work(ranks: int, begin: int, version: int) -> float:
    if ranks == 1 and not begin:
        return ALONE
    heavy = ranks == 3 or (ranks == 1 and version - begin >= TURN_STEPS)
    return HEAVY if heavy else LIGHT


def _ranks(spec: RankSpec) -> int:
    return spec.environment.world_size
