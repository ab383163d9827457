"""Countdown: every target can be reached, and only honest expressions count."""

from fractions import Fraction
from itertools import permutations, product

import pytest

from trainer.rl.tasks.countdown import Countdown, parse_expression, value_of
from trainer.rl.tasks.question import Question

TASK = Countdown(seed=1, length=3, format_credit=0.1)
QUESTION = Question(
    index=0, text="", reference={"numbers": [3, 5, 7], "target": 26}, where="countdown"
)


def reachable(numbers, target):
    forms = ("({0}{a}{1}){b}{2}", "{2}{b}({0}{a}{1})")
    for order in permutations(numbers):
        for a, b in product("+-*", repeat=2):
            for form in forms:
                tree = parse_expression(form.format(*order, a=a, b=b))
                if value_of(tree) == target:
                    return True
    return False


def test_every_target_is_reachable_and_a_function_of_seed_and_index():
    for index in range(40):
        question = TASK.question(index)
        assert question == Countdown(seed=1, length=3).question(index)
        assert reachable(**question.reference)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("3*7+5", 1.0),
        (" 5 + 3 * 7 = 26\n", 1.0),
        ("5+(7*3)", 1.0),
        ("3*7", 0.1),
        ("3*7+5+5", 0.0),
        ("26", 0.0),
        ("3/(5-5)", 0.0),
        ("3/7+5", 0.1),
        ("3**7", 0.0),
        ("3//7", 0.0),
        ("-3+5", 0.0),
        ("__import__('os')", 0.0),
        ("(" * 150 + "3" + ")" * 20, 0.0),
        ("3+" * 300 + "5", 0.0),
        ("", 0.0),
        ("=", 0.0),
    ],
)
def test_scores(answer, score):
    assert TASK.score(QUESTION, answer) == score


def test_arithmetic_is_exact_and_dividing_by_zero_has_no_value():
    assert value_of(parse_expression("1/3+1/3+1/3")) == 1
    assert value_of(parse_expression("7/2")) == Fraction(7, 2)
    assert value_of(parse_expression("7/(5-5)")) is None
