from dataclasses import replace

import pytest

from parallel.layout import Layout
from parallel.sequence.stretches import AttentionScheme
from tests.trainer.rl.samples import make_sample, make_samples
from trainer.errors import DataError
from trainer.planner.plan import Round, SequenceGroup, StepPlan
from trainer.rl.batch import input_tokens, trained_tokens
from trainer.rl.messages import TrainOn
from trainer.rl.work import WorkMaker

RING = AttentionScheme(ring=2)


def maker(data_rank, rounds, seen=None):
    def choose(step, lengths):
        if seen is not None:
            seen.append(lengths)
        return StepPlan(step=step, layout=Layout(replica=2), rounds=rounds, padding="group")

    return WorkMaker(
        data_rank=data_rank,
        longest_tokens=20,
        padding_token=0,
        max_response_tokens=9,
        choose=choose,
    )


def alone(*sequences):
    return Round(
        groups=tuple(
            SequenceGroup(first_rank=rank, size=1, sequences=own)
            for rank, own in enumerate(sequences)
        )
    )


def test_every_sample_is_in_the_work_of_one_rank():
    samples = make_samples(5)
    order = TrainOn(version=3, samples=samples)
    seen = []
    works = [
        maker(rank, (alone((0, 3), (1,)), alone((2, 4), ())), seen).work(7, order)
        for rank in (0, 1)
    ]
    assert seen[0] == [input_tokens(sample) for sample in samples]
    real = [batch.num_tokens for work in works for batch in work.batches]
    assert sum(real) == sum(map(input_tokens, samples)) == works[0].num_tokens
    assert real[3] == 0
    assert sum(work.own_tokens for work in works) == works[0].num_tokens
    trained = sum(map(trained_tokens, samples))
    assert {work.num_targets for work in works} == {work.divisor for work in works} == {trained}
    counts = {batch.counts for work in works for batch in work.batches}
    assert [(c.tokens, c.sequences, c.max_response_tokens) for c in counts] == [(trained, 5, 9)]


def test_ranks_of_a_group_hold_a_sample_together():
    order = TrainOn(version=3, samples=make_samples(2))
    group = SequenceGroup(first_rank=0, size=2, sequences=(1, 0), attention=RING)
    works = [maker(rank, (Round(groups=(group,)),)).work(1, order) for rank in (0, 1)]
    first, second = (work.batches[0] for work in works)
    assert len(first.tokens_T) == len(second.tokens_T)
    assert first.sequence_ends == second.sequence_ends
    held = sorted([*first.stretches, *second.stretches])
    assert held[0][0] == 0
    assert held[-1][1] == first.sequence_ends[-1]
    targets = sum(int((batch.labels_T >= 0).sum()) for batch in (first, second))
    assert targets == works[0].num_targets


def test_pairs_stay_together():
    samples = make_samples(4)
    order = TrainOn(version=3, samples=samples, pairs=((3, 1), (0, 1)))
    seen = []
    works = [maker(rank, (alone((1,), (0,)),), seen).work(1, order) for rank in (0, 1)]
    lengths = [input_tokens(sample) for sample in samples]
    assert seen[0] == [lengths[3] + lengths[1], lengths[0] + lengths[1]]
    batch = works[1].batches[0]
    assert batch.sequence_tokens == (lengths[3], lengths[1])
    assert batch.policy.pairs_P2.tolist() == [[0, 1]]
    assert batch.counts.pairs == 2
    assert batch.counts.sequences == 4


def test_an_episode_that_nobody_can_hold_names_the_keys():
    order = TrainOn(version=3, samples=(make_sample(0, length=22),))
    with pytest.raises(DataError, match=r"21 tokens.*train\.max_tokens_per_device"):
        maker(0, (alone((0,)),)).work(1, order)


def test_a_step_without_samples_has_a_round_of_padding():
    work = maker(0, ()).work(1, TrainOn(version=3, samples=(), figures={"accuracy": 0.0}))
    assert [batch.num_targets for batch in work.batches] == [0]
    assert work.divisor == 1
    assert work.figures.with_sums([0.0] * 5) == {"accuracy": 0.0}


def test_experts_are_replayed_where_any_were_recorded():
    routed, plain = make_sample(0, routing=(2, 3, 5)), replace(make_sample(1), routing=None)
    work = maker(0, (alone((0, 1)),)).work(1, TrainOn(version=3, samples=(routed, plain)))
    experts_TLk = work.batches[0].experts_TLk
    assert experts_TLk.shape == (input_tokens(routed) + input_tokens(plain), 2, 3)
    assert (experts_TLk[: input_tokens(routed)] >= 0).all()
    assert (experts_TLk[input_tokens(routed) :] == -1).all()
