from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.trainer.model.generating import ARCHITECTURES, PLAIN, make_model
from trainer.errors import RecipeError
from trainer.generate import generate, pick
from trainer.model.cache import KvCache
from trainer.model.config import RopeScaling

DYNAMIC = replace(
    PLAIN, rope_scaling=RopeScaling(kind="dynamic", factor=4.0, original_context_tokens=8)
)
PROMPT = [5, 9, 2, 40, 13]
GREEDY = {"temperature": 0.0, "top_p": 1.0, "seed": 0, "eos_id": None, "context": 100}


def whole_logits(model, tokens):
    return model.logits(torch.tensor(tokens), torch.arange(len(tokens)), (len(tokens),))


def greedy_without_cache(model, prompt, new_tokens):
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(int(whole_logits(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_cached_logits_equal_uncached_ones(name):
    model = make_model(ARCHITECTURES[name])
    tokens = torch.randint(0, PLAIN.vocab_size, (23,), generator=torch.Generator().manual_seed(0))
    cache = KvCache(model.architecture, 23)
    parts, start = [], 0
    for size in (9, 1, 1, 5, 1, 6):
        new = slice(start, start + size)
        parts.append(model.logits(tokens[new], torch.arange(start, start + size), (size,), cache))
        start += size
    whole = whole_logits(model, tokens.tolist())
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES.values(), DYNAMIC])
@torch.no_grad()
def test_greedy_takes_the_likeliest_token_of_the_whole_text(architecture):
    model = make_model(architecture)
    tokens = list(generate(model, PROMPT, max_new_tokens=12, **GREEDY))
    assert tokens == greedy_without_cache(model, PROMPT, 12)


def test_a_cache_is_refused_where_earlier_keys_would_have_to_turn():
    with pytest.raises(ValueError, match="original_context_tokens=8"):
        KvCache(DYNAMIC, 9)


def test_a_cache_does_not_grow():
    model, cache = make_model(PLAIN), KvCache(PLAIN, 4)
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of 4"):
        model.logits(torch.tensor(PROMPT), torch.arange(5), (5,), cache)


def test_drawing_is_a_function_of_the_seed():
    model = make_model(PLAIN)
    options = GREEDY | {"temperature": 1.0, "max_new_tokens": 20}
    first, again = (list(generate(model, PROMPT, **options)) for _ in range(2))
    other = list(generate(model, PROMPT, **options | {"seed": 1}))
    assert first == again != other


def test_the_end_token_stops_and_is_not_yielded():
    model = make_model(PLAIN)
    free = list(generate(model, PROMPT, max_new_tokens=10, **GREEDY))
    end = free[4]
    stopped = list(generate(model, PROMPT, max_new_tokens=10, **GREEDY | {"eos_id": end}))
    assert stopped == free[: free.index(end)]


def test_the_context_bounds_prompt_and_answer_together():
    model = make_model(PLAIN)
    assert len(list(generate(model, PROMPT, max_new_tokens=10, **GREEDY | {"context": 8}))) == 3


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        ([], {}, "no tokens"),
        (PROMPT, {"context": 5}, "has 5 tokens and the context holds 5"),
        (PROMPT, {"temperature": -1.0}, "temperature=-1.0 must not be negative"),
        (PROMPT, {"top_p": 0.0}, "top_p=0.0 must lie in"),
    ],
)
def test_impossible_requests_are_refused_at_once(prompt, changes, message):
    with pytest.raises(RecipeError, match=message):
        generate(make_model(PLAIN), prompt, max_new_tokens=3, **GREEDY | changes)


def test_the_callers_gradient_mode_is_left_alone():
    for _ in generate(make_model(PLAIN), PROMPT, max_new_tokens=2, **GREEDY):
        assert torch.is_grad_enabled()


def test_top_p_keeps_the_smallest_set_that_holds_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)

    def drawn(top_p):
        picks = [
            pick(logits, temperature=1.0, top_p=top_p, generator=generator) for _ in range(2000)
        ]
        return Counter(picks)

    assert set(drawn(0.4)) == {0}
    assert set(drawn(0.79)) == {0, 1}
    assert set(drawn(0.94)) == {0, 1, 2}
    everything = drawn(1.0)
    assert set(everything) == {0, 1, 2, 3}
    assert everything[0] == pytest.approx(1000, abs=120)
