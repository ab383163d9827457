"""Arithmetic: reproducible questions, and which answers count."""

import pytest

from trainer.rl.tasks.arithmetic import Arithmetic

TASK = Arithmetic(seed=1, digits=2, operations="+-*")


def test_a_question_is_a_function_of_seed_and_index():
    again = Arithmetic(seed=1, digits=2, operations="+-*")
    texts = [TASK.question(i).text for i in range(50)]
    assert texts == [again.question(i).text for i in range(50)]
    assert len(set(texts)) > 40
    assert texts != [Arithmetic(seed=2, operations="+-*").question(i).text for i in range(50)]


def test_the_reference_is_the_result():
    for index in range(100):
        question = TASK.question(index)
        left, sign, right = question.text[:-1].partition(
            next(s for s in "+*-" if s in question.text)
        )
        results = {"+": int(left) + int(right), "-": int(left) - int(right)}
        results["*"] = int(left) * int(right)
        assert question.reference["answer"] == str(results[sign])
        assert max(int(left), int(right)) < 100


@pytest.mark.parametrize(
    ("form", "score"),
    [("{}", 1.0), (" {} \n4", 1.0), ("{}0", 0.0), ("{} or so", 0.0), ("x{}", 0.0), ("", 0.0)],
)
def test_the_first_line_must_be_the_number(form, score):
    question = TASK.question(7)
    assert TASK.score(question, form.format(question.reference["answer"])) == score


def test_equal_answers_are_extracted_alike():
    assert TASK.extract(" 007 apples") == TASK.extract("7") == "7"
    assert TASK.extract("none") is None
    assert TASK.extract("9" * 5000) is None
