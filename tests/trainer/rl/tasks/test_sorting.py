"""Sorting: reproducible questions, and a score by places."""

import pytest

from trainer.rl.tasks.sorting import Sorting

TASK = Sorting(seed=1, length=5)


def test_a_question_is_a_function_of_seed_and_index_and_its_reference_is_sorted():
    for index in range(30):
        question = TASK.question(index)
        assert question == Sorting(seed=1, length=5).question(index)
        asked = [int(n) for n in question.text.removeprefix("sort ").removesuffix(": ").split()]
        assert 2 <= len(asked) <= 5
        assert question.reference["answer"] == " ".join(map(str, sorted(asked)))


def test_the_score_is_the_share_of_right_places():
    question = next(q for q in map(TASK.question, range(100)) if len(q.text.split()) == 5)
    numbers = question.reference["answer"].split()
    assert TASK.score(question, f" {'  '.join(numbers)}\nmore") == 1.0
    assert TASK.score(question, " ".join([*numbers[:-1], "1000"])) == 0.75


@pytest.mark.parametrize("answer", ["", "1", "1 2 x y", "1, 2, 3, 4"])
def test_another_count_or_no_numbers_score_nothing(answer):
    question = next(q for q in map(TASK.question, range(100)) if len(q.text.split()) == 5)
    assert TASK.score(question, answer) == 0.0
