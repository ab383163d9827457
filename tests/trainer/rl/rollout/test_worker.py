"""The guarantees of trainer/rl/rollout/worker.py, and of the reference of a run."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.trainer.rl.rollout.partners import Giver, Hand, PlainTrainer, Stage, channel_store
from tests.trainer.rl.rollout.tiny import RL, decoder, sections
from trainer.errors import RecipeError
from trainer.model.hf_weights import write_hf_folder
from trainer.rl.conducting.conductor import Conductor
from trainer.rl.messages import Answer, Answered, GiveUp, Pulse, Under, Updated
from trainer.rl.objectives.config import ObjectiveConfig
from trainer.rl.payload import PromptRecord
from trainer.rl.rollout.parts import build_parts
from trainer.rl.rollout.reference import ReferenceModel, load_named_reference
from trainer.run_folder import RunFolder


def heard(hand, kind, count=1, limit_s=150.0):
    """The next messages of a kind, and everything else on the way to them."""
    found, others = [], []
    end_s = time.monotonic() + limit_s
    while len(found) < count:
        assert time.monotonic() < end_s, f"no {kind.__name__}, but {others}"
        assert hand.error is None
        for message in hand.outbox.take_all(0.1):
            (found if isinstance(message, kind) else others).append(message)
    return found, others


def records(answered):
    return [PromptRecord.from_plain(one.kept.payload) for one in answered]


def asked(*numbers):
    return [Answer(number=n, lease_id=100 + n, kept=None) for n in numbers]


def test_nothing_is_sampled_before_the_first_weights_and_tokens_bear_their_versions(tmp_path):
    job = sections(tmp_path)
    with channel_store() as store:
        giver = Giver(store)
        hand = Hand("w0", job).start()
        hand.inbox.put(*asked(0, 1), giver.join())
        (pulse, *_), others = heard(hand, Pulse)
        assert (pulse.version, pulse.running, pulse.drawn_tokens) == (None, 0, 0)
        assert others == []
        giver.give(2, decoder()).result()
        (updated,), _ = heard(hand, Updated)
        assert (updated.version, updated.prefix) == (2, "weights/0")
        answered, _ = heard(hand, Answered, 2)
        assert sorted(one.lease_id for one in answered) == [100, 101]
        giver.give(3, decoder(2)).result()
        heard(hand, Updated)
        hand.inbox.put(*asked(2))
        later, _ = heard(hand, Answered)
        for found, version in ((answered, 2), (later, 3)):
            for answer in (a for one in records(found) for a in one.answers):
                assert set(answer.versions[answer.loss_mask == 1].tolist()) == {version}
        pulses, _ = heard(hand, Pulse, 2)
        assert pulses[-1].idle_s > 0.0
        hand.inbox.close()
        hand.thread.join(20.0)
        assert not hand.thread.is_alive()
        giver.close()


def test_draining_finishes_what_is_under_way_before_new_weights(tmp_path):
    job = sections(tmp_path)
    rollout = replace(job.rollout, on_update="drain", max_new_tokens=120)
    job = replace(job, rollout=rollout)
    with channel_store() as store:
        giver = Giver(store)
        hand = Hand("w0", job).start()
        hand.inbox.put(giver.join())
        giver.give(0, decoder()).result()
        heard(hand, Updated)
        hand.inbox.put(*asked(0, 1, 2))
        giver.give(1, decoder(2)).result()
        hand.inbox.put(*asked(3))
        (updated,), before = heard(hand, Updated)
        assert updated.version == 1
        early = records(m for m in before if isinstance(m, Answered))
        found, _ = heard(hand, Answered, 4 - len(early))
        versions = [
            {v for a in one.answers for v in a.versions[a.loss_mask == 1].tolist()}
            for one in [*early, *records(found)]
        ]
        assert all(len(drawn) == 1 for drawn in versions), "no prompt has tokens of two versions"
        hand.inbox.put(GiveUp())
        hand.killed = True
        hand.thread.join(20.0)
        giver.close()


def test_unfinished_answers_are_told_of_and_end_when_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.rl.rollout.worker._TELL_S", 0.0)
    job = sections(tmp_path)
    job = replace(job, rollout=replace(job.rollout, max_new_tokens=400))
    with channel_store() as store:
        giver = Giver(store)
        hand = Hand("w0", job).start()
        hand.inbox.put(giver.join(), *asked(0))
        giver.give(0, decoder()).result()
        (under, *_), _ = heard(hand, Under)
        assert under.lease_id == 100
        assert (under.kept.oldest, under.kept.newest) == (0, 0)
        hand.inbox.put(GiveUp(lease_ids=(100,)))
        heard(hand, Pulse)
        pulses, _ = heard(hand, Pulse)
        assert pulses[-1].running == 0
        hand.inbox.close()
        hand.thread.join(20.0)
        giver.close()


WITH_REFERENCE = replace(RL, objective=ObjectiveConfig(kl_coefficient=0.1))


def test_a_replacement_compares_with_the_same_reference(tmp_path):
    job = sections(tmp_path, rl=WITH_REFERENCE)
    first, second = (
        build_parts(job, host="h", device=torch.device("cpu"), should_stop=lambda: False)
        for _ in range(2)
    )
    assert first is not None
    assert second is not None
    texts = [[1, 2, 3, 4], [5, 6]]
    first.engine.load(0, decoder(1).state_dict().items())
    first.reference.settle(0)
    known = first.rules.reference(texts)
    first.engine.load(1, decoder(2).state_dict().items())
    first.reference.settle(1)
    second.engine.load(3, decoder(4).state_dict().items())
    second.reference.settle(3)
    plain = ReferenceModel(decoder(1))(texts)
    for one, other, expected in zip(known, second.rules.reference(texts), plain, strict=True):
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(other, expected)


@torch.no_grad()
def test_reference_log_probabilities_are_those_of_a_plain_forward():
    model = decoder()
    texts = [list(range(1, 9)), [7, 3], [4] * 5]
    for text, found in zip(texts, ReferenceModel(model)(texts), strict=True):
        tokens_T = torch.tensor(text)
        logits_TV = model.logits(tokens_T, torch.arange(len(text)), (len(text),))
        expected_T = logits_TV[:-1].log_softmax(1).gather(1, tokens_T[1:, None]).squeeze(1)
        np.testing.assert_allclose(found[1:], expected_T.numpy(), rtol=1e-4, atol=1e-5)
        assert found[0] == 0.0


def test_a_reference_that_is_gone_or_named_wrongly_is_said_so(tmp_path):
    job = sections(tmp_path, rl=WITH_REFERENCE)
    parts = build_parts(job, host="h", device=torch.device("cpu"), should_stop=lambda: False)
    assert parts is not None
    with pytest.raises(RecipeError, match=r"up to version 3 .* name a folder in rl\.reference"):
        parts.reference.settle(3)
    with pytest.raises(RecipeError, match="no folder of a model, a run or a checkpoint"):
        load_named_reference(decoder(), str(RunFolder.of(job.run).root))


def test_a_named_reference_is_read_before_the_first_answer_needs_it(tmp_path):
    named, folder = decoder(5), tmp_path / "named"
    write_hf_folder(
        folder,
        named.architecture,
        named.state_dict(),
        dtype=torch.float32,
        max_shard_bytes=10**6,
        tokenizer_folder=None,
    )
    job = sections(tmp_path, rl=replace(WITH_REFERENCE, reference=str(folder)))
    parts = build_parts(job, host="h", device=torch.device("cpu"), should_stop=lambda: False)
    assert parts is not None
    parts.reference.prepare()
    parts.reference.settle(7)
    (found,), (expected,) = parts.rules.reference([[1, 2, 3]]), ReferenceModel(named)([[1, 2, 3]])
    np.testing.assert_array_equal(found, expected)


def test_prompts_and_answers_must_fit_where_they_are_sampled_and_trained(tmp_path):
    job = sections(tmp_path)
    long = replace(job, rollout=replace(job.rollout, max_new_tokens=5000))
    with pytest.raises(RecipeError, match="make 5008 tokens, but 2048 fit"):
        build_parts(long, host="h", device=torch.device("cpu"), should_stop=lambda: False)


def test_a_worker_that_should_stop_waits_for_no_tokenizer(tmp_path):
    job = replace(sections(tmp_path), run=replace(sections(tmp_path).run, name="other"))
    assert build_parts(job, host="h", device=torch.device("cpu"), should_stop=lambda: True) is None


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
    assert len(groups) == len(set(groups)) > 2 * STEPS, "fewer once all is learned"
    for batch in trainer.batches:
        assert batch.figures["staleness/max"] <= 1
        for sample in batch.samples:
            drawn = sample.versions[sample.loss_mask == 1]
            assert 0 <= batch.version - drawn.max() <= batch.version - drawn.min() <= 1
    lost = [event for event in stage.events if event["kind"] == "rollout_lost"]
    assert (lost[0]["worker"], lost[0]["cause"]) == ("rollout 0", "killed")
    assert any(batch.figures.get("publish/seconds", 0.0) > 0.0 for batch in trainer.batches)
