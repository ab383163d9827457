from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.trainer.model.generating import ARCHITECTURES, make_model
from tests.trainer.rl.engine.rollouts import (
    CONFIG,
    answers_alone,
    answers_of,
    finish,
    requests,
    tokens,
    whole_logprobs,
)
from trainer.errors import NumericError
from trainer.rl.engine.config import EngineConfig
from trainer.rl.engine.engine import Engine
from trainer.rl.engine.request import Request, Sampling

V_PROJ = "layers.0.self_attn.v_proj.weight"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_in_a_batch_are_those_alone_with_the_models_own_logprobs(name):
    model = make_model(ARCHITECTURES[name])
    together, engine = answers_of(model)
    assert tokens(together) == tokens(answers_alone(model))
    assert engine.stats().copied_blocks > 0
    assert engine.stats().free_blocks == engine.stats().blocks
    for request in requests():
        for sample in range(len(request.seeds)):
            answer = together[request.id, sample]
            assert len(answer.tokens) == request.sampling.max_new_tokens
            expected = whole_logprobs(model, request, answer)
            torch.testing.assert_close(
                torch.tensor(answer.model_logprobs), expected, rtol=1e-5, atol=1e-5
            )
            assert answer.logprobs == answer.model_logprobs
            assert answer.reason == "length"


def test_settings_of_sampling_may_differ_within_a_batch():
    model = make_model()
    kinds = [
        Sampling(temperature=0.0, max_new_tokens=9),
        Sampling(temperature=0.7, max_new_tokens=9),
        Sampling(top_p=0.8, max_new_tokens=9),
        Sampling(top_k=4, temperature=1.3, max_new_tokens=9),
        Sampling(max_new_tokens=9),
    ]
    asked = [
        replace(request, sampling=kind) for request, kind in zip(requests(), kinds, strict=True)
    ]
    together, _ = answers_of(model, asked=asked)
    assert tokens(together) == tokens(answers_alone(model, asked))
    greedy = together["r0", 0]
    assert greedy.logprobs == [0.0] * 9
    assert max(greedy.model_logprobs) < 0.0
    assert together["r0", 1].tokens == greedy.tokens


def test_an_answer_that_runs_out_of_blocks_starts_again_and_ends_the_same():
    model = make_model()
    few = replace(CONFIG, kv_bytes=2**10 * 12 * 4 // 4)
    together, engine = answers_of(model, few)
    assert engine.stats().preemptions > 0
    assert tokens(together) == tokens(answers_of(model)[0])


@pytest.mark.parametrize("name", ["plain", "window"])
def test_drafts_change_no_token_and_need_fewer_forwards(name):
    model = make_model(ARCHITECTURES[name])
    asked = [
        Request(
            id="loop",
            prompt=(5, 6, 7, 8) * 4,
            seeds=(1, 2),
            sampling=Sampling(temperature=0.0, max_new_tokens=60),
        ),
        Request(id="free", prompt=(9, 2), sampling=Sampling(max_new_tokens=60)),
    ]
    ticks = iter(range(10**6))
    config = replace(CONFIG, max_draft_tokens=4, forward_tokens=40)
    # Forwards that all take one second make drafts worth it wherever there is one.
    engine = Engine(model, config, clock=lambda: float(next(ticks)))
    for request in asked:
        engine.submit(request)
    drafted = finish(engine)
    plain, other = answers_of(model, asked=asked)
    assert tokens(drafted) == tokens(plain)
    stats = engine.stats()
    assert 0 < stats.accepted_draft_tokens <= stats.draft_tokens
    assert stats.steps < other.stats().steps
    for request in asked:
        answer = drafted[request.id, 0]
        torch.testing.assert_close(
            torch.tensor(answer.model_logprobs),
            whole_logprobs(model, request, answer),
            rtol=1e-5,
            atol=1e-5,
        )


@torch.no_grad()
def test_drafted_tokens_have_the_distribution_of_the_model():
    model, count = make_model(), 1500
    prompt = (5, 6, 5, 6, 5)
    config = EngineConfig(
        block_tokens=4, max_sequences=64, forward_tokens=200, max_draft_tokens=2, kv_bytes=2**20
    )
    ticks = iter(range(10**6))
    engine = Engine(model, config, clock=lambda: float(next(ticks)))
    sampling = Sampling(temperature=2.0, top_k=6, max_new_tokens=2)
    engine.submit(Request(id="a", prompt=prompt, seeds=tuple(range(count)), sampling=sampling))
    drawn = finish(engine, max_steps=3000)
    assert engine.stats().draft_tokens > count / 2

    def distribution(text):
        logits = model.logits(torch.tensor(text), torch.arange(len(text)), (len(text),))[-1]
        best = logits.topk(6)
        return dict(zip(best.indices.tolist(), (best.values / 2).softmax(0).tolist(), strict=True))

    expected = {
        (first, second): p * q
        for first, p in distribution(prompt).items()
        for second, q in distribution((*prompt, first)).items()
    }
    counts = Counter(tuple(answer.tokens) for answer in drawn.values())
    assert set(counts) <= set(expected)
    # 35 degrees of freedom: beyond 80 lies less than one run in 20,000.
    assert sum((counts[pair] - count * p) ** 2 / (count * p) for pair, p in expected.items()) < 80


def test_an_answer_begun_elsewhere_goes_on_as_it_would_have():
    model = make_model()
    whole, _ = answers_of(model)
    asked = [
        replace(
            request,
            started=tuple(
                tuple(whole[request.id, sample].tokens[: 3 * sample])
                for sample in range(len(request.seeds))
            ),
        )
        for request in requests()
    ]
    resumed, _ = answers_of(model, asked=asked)
    assert tokens(resumed) == tokens(whole)
    assert len(resumed["r0", 2].logprobs) == len(resumed["r0", 2].tokens) - 6


def test_answers_end_with_their_stop_tokens():
    model = make_model()
    free = answers_of(model)[0]["r0", 0].tokens
    request = requests()[0]
    for stop in ({"stop_ids": (free[5],)}, {"stop_sequences": ((66, 66), tuple(free[4:6]))}):
        sampling = replace(request.sampling, **stop)
        answer = answers_of(model, asked=[replace(request, sampling=sampling)])[0]["r0", 0]
        assert answer.tokens == free[: len(answer.tokens)]
        assert answer.reason == "stop"
        assert len(answer.tokens) <= 6


def test_a_request_can_be_given_up_and_its_tokens_are_kept():
    model = make_model()
    whole, _ = answers_of(model)
    engine = Engine(model, CONFIG)
    for request in requests():
        engine.submit(request)
    for _ in range(9):
        engine.step()
    under_way = {(a.request_id, a.sample): a for a in engine.unfinished()}
    given_up = engine.cancel("r0")
    assert [answer.reason for answer in given_up] == ["cancelled"] * 3
    assert engine.cancel("unknown") == []
    for answer in given_up:
        key = answer.request_id, answer.sample
        assert answer.tokens == under_way[key].tokens == whole[key].tokens[: len(answer.tokens)]
    rest = finish(engine)
    assert tokens(rest) == {key: a.tokens for key, a in whole.items() if key[0] != "r0"}
    assert engine.stats().free_blocks == engine.stats().blocks


def test_masks_are_recorded_where_tokens_were_left_out():
    model = make_model()
    asked = [replace(requests()[0], sampling=Sampling(top_k=5, max_new_tokens=6))]
    answers, _ = answers_of(model, replace(CONFIG, record_masks=True), asked)
    for answer in answers.values():
        for token, kept, mass in zip(
            answer.tokens, answer.kept_ids, answer.kept_log_mass, strict=True
        ):
            assert len(kept) == 5
            assert token in kept
            assert mass < 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": (1,) * 3000}, "3000 prompt tokens and may draw 14"),
        ({"prompt": (1, 67)}, "has token 67, and the model knows 0 to 66"),
        ({"id": "r1"}, "'r1' is under way already"),
    ],
)
def test_what_can_never_be_answered_is_refused_at_once(changes, message):
    engine = Engine(make_model(), CONFIG)
    engine.submit(requests()[1])
    with pytest.raises(ValueError, match=message):
        engine.submit(replace(requests()[0], **changes))
    assert len(finish(engine)) == 2


@pytest.mark.parametrize("name", ["plain", "moe"])
def test_scores_that_are_not_finite_are_told_with_their_version_and_leave_no_trace(name):
    model = make_model(ARCHITECTURES[name])
    engine = Engine(model, replace(CONFIG, record_routing=True))
    good = {key: value.clone() for key, value in model.state_dict().items()}
    for request in requests():
        engine.submit(request)
    answers = [answer for _ in range(5) for answer in engine.step().finished]
    engine.load(4, {**good, V_PROJ: good[V_PROJ] * torch.nan}.items())
    with pytest.raises(NumericError, match="version 4"):
        engine.step()
    engine.load(5, good.items())
    found = {(answer.request_id, answer.sample): answer for answer in answers} | finish(engine)
    alone = answers_alone(model)
    assert tokens(found) == tokens(alone)
    assert all(4 not in answer.versions for answer in found.values())
