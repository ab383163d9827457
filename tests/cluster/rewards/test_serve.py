"""One call of a reward function."""

from fractions import Fraction

import pytest

from cluster.rewards.serve import call
from trainer.rl.rewards.outcome import FaultKind

REQUEST = {"prompt": "p", "completions": ["a", "bb"], "reference": {"answer": "bb"}}


def test_the_function_gets_prompt_completions_and_reference():
    def score(prompt, completions, reference):
        assert prompt == "p"
        return [completion == reference["answer"] for completion in completions]

    assert call(score, REQUEST) == {"rewards": [0.0, 1.0]}


def test_numbers_of_any_library_count_and_what_is_none_is_kept():
    assert call(lambda *_: [Fraction(1, 2), None], REQUEST) == {"rewards": [0.5, None]}
    assert call(lambda *_: ["1"], REQUEST) == {"rewards": ["1"]}


def raises(error):
    def score(*_):
        raise error

    return score


@pytest.mark.parametrize(
    ("error", "reason"),
    [(KeyError("x"), "KeyError: 'x'"), (ZeroDivisionError("zero"), "ZeroDivisionError: zero")],
)
def test_what_it_raises_is_the_reason(error, reason):
    assert call(raises(error), REQUEST) == {"kind": FaultKind.RAISED, "reason": reason}


def test_no_list_and_no_memory_are_told_apart():
    assert call(lambda *_: 1.0, REQUEST)["kind"] is FaultKind.RAISED
    assert call(raises(MemoryError()), REQUEST)["kind"] is FaultKind.MEMORY
