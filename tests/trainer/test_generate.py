from dataclasses import replace

import pytest
import torch

from tests.trainer.model.generating import ARCHITECTURES, PLAIN, make_model
from trainer.errors import RecipeError
from trainer.generate import generate
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


@pytest.mark.parametrize("architecture", [*ARCHITECTURES.values(), DYNAMIC])
@torch.no_grad()
def test_greedy_takes_the_likeliest_token_of_the_whole_text(architecture):
    model = make_model(architecture)
    tokens = list(generate(model, PROMPT, max_new_tokens=12, **GREEDY))
    assert tokens == greedy_without_cache(model, PROMPT, 12)


def test_a_text_beyond_the_original_context_is_drawn_with_the_same_random_numbers():
    longest = DYNAMIC.rope_scaling.original_context_tokens - len(PROMPT)
    options = GREEDY | {"temperature": 1.0, "top_p": 0.9, "seed": 3}
    model = make_model(DYNAMIC)
    within, beyond = (
        list(generate(model, PROMPT, max_new_tokens=count, **options))
        for count in (longest, longest + 1)
    )
    assert beyond[:longest] == within


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
    model = make_model(PLAIN)
    probabilities = whole_logits(model, PROMPT)[-1].detach().softmax(dim=0)
    likeliest = probabilities.argsort(descending=True).tolist()
    for kept in (1, 2, 4):
        before = float(probabilities[likeliest[: kept - 1]].sum())
        top_p = before + 0.5 * float(probabilities[likeliest[kept - 1]])
        options = GREEDY | {"temperature": 1.0, "top_p": top_p}
        drawn = {
            next(generate(model, PROMPT, max_new_tokens=1, **options | {"seed": seed}))
            for seed in range(60)
        }
        assert drawn == set(likeliest[:kept])
