"""Conductor, workers and trainers together, over real channels for weights, learn a task."""

import torch

from tests.trainer.rl.rollout.partners import PlainTrainer, Stage, channel_store
from tests.trainer.rl.rollout.tiny import sections
from trainer.rl.conducting.conductor import Conductor

STEPS = 14


def test_a_task_is_learned_although_a_worker_dies_midway(tmp_path):
    torch.set_num_threads(1)
    job = sections(tmp_path)
    with channel_store() as store:
        conductor = Conductor(job.rl, job.rollout, seed=3, last_version=STEPS, store=store)
        trainer = PlainTrainer(STEPS)
        stage = Stage(conductor, trainer, job)
        stage.bring_up("rollout 0")
        stage.bring_up("rollout 1")
        stage.run(lambda: len(trainer.batches) >= 4)
        stage.kill("rollout 0")
        stage.bring_up("rollout 2")
        stage.run(lambda: conductor.done)
        stage.close()
    rewards = [batch.figures["reward/mean"] for batch in trainer.batches]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.3, rewards
    groups = [g for b in trainer.batches for g in {s.group for s in b.samples}]
    assert len(groups) == len(set(groups)) == 4 * STEPS
    for batch in trainer.batches:
        assert batch.figures["staleness/max"] <= 1
        for sample in batch.samples:
            drawn = sample.versions[sample.loss_mask == 1]
            assert 0 <= batch.version - drawn.max() <= batch.version - drawn.min() <= 1
    assert {event["kind"] for event in stage.events} == {"rollout_lost"}
    assert trainer.batches[-1].figures["publish/seconds"] > 0.0
