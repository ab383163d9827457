"""Users' own tasks and environments, found by name."""

import pytest

from trainer.errors import RecipeError
from trainer.rl.tasks.build import build_environment, build_task
from trainer.rl.tasks.config import TaskConfig
from trainer.rl.tasks.own import load_factory

MODULE = """
from trainer.rl.tasks.question import Question, Turn

class Echo:
    size = None

    def __init__(self, seed):
        self.seed = seed

    def question(self, index):
        return Question(index=index, text=f"{self.seed}", reference={}, where="echo")

    def extract(self, answer):
        return answer

    def score(self, question, answer):
        return float(answer == question.text)

class Twice:
    def __init__(self, task, codec, question):
        self.task, self.codec, self.question, self.said = task, codec, question, []

    def step(self, tokens):
        self.said += tokens
        return Turn(len(self.said) > 1, self.codec.encode("+"))

    def answer(self):
        return self.codec.decode(self.said)

    def score(self):
        return self.task.score(self.question, self.answer())
"""


@pytest.fixture(autouse=True)
def _own_module(tmp_path, monkeypatch):
    (tmp_path / "own_task_for_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_an_own_task_in_an_own_environment(codec):
    config = TaskConfig(
        kind="own", factory="own_task_for_test:Echo", environment="own_task_for_test:Twice"
    )
    task = build_task(config, seed=42)
    environment = build_environment(config, task, codec, task.question(0))
    assert not environment.step(codec.encode("4")).done
    assert environment.step(codec.encode("2")).done
    assert environment.score() == 1.0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none_such_module:x", r"rl\.task\.factory=none_such_module:x cannot be imported"),
        ("own_task_for_test:Other", "no function or class 'Other'"),
    ],
)
def test_what_is_not_there_is_named(name, says):
    with pytest.raises(RecipeError, match=says):
        load_factory("rl.task.factory", name)
