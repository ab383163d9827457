"""Environments: one answer, several tries, and what is read between them."""

import pytest

from trainer.rl.tasks.arithmetic import Arithmetic
from trainer.rl.tasks.environments import AnswerEnvironment

TASK = Arithmetic(seed=0)
QUESTION = TASK.question(0)
RIGHT = QUESTION.reference["answer"]


def test_one_answer_ends_the_episode(codec):
    environment = AnswerEnvironment(TASK, codec, QUESTION)
    assert (environment.answer(), environment.score()) == ("", 0.0)
    turn = environment.step(codec.encode(RIGHT))
    assert (turn.done, turn.observation) == (True, ())
    assert (environment.answer(), environment.score()) == (RIGHT, 1.0)
    with pytest.raises(ValueError, match="is answered"):
        environment.step(codec.encode("1"))


def test_a_wrong_answer_may_be_followed_by_another_try(codec):
    environment = AnswerEnvironment(
        TASK, codec, QUESTION, max_turns=3, retry_text="again: ", turn_discount=0.5
    )
    turn = environment.step(codec.encode("no"))
    assert (turn.done, turn.observation) == (False, codec.encode("again: "))
    assert environment.step(codec.encode(RIGHT)).done
    assert environment.score() == 0.5


def test_tries_come_to_an_end(codec):
    environment = AnswerEnvironment(TASK, codec, QUESTION, max_turns=2, retry_text="!")
    assert not environment.step(codec.encode("no")).done
    assert environment.step(codec.encode("no")).done
    assert environment.score() == 0.0


def test_answers_must_be_parted(codec):
    with pytest.raises(ValueError, match="has no tokens"):
        AnswerEnvironment(TASK, codec, QUESTION, max_turns=2, retry_text="")
