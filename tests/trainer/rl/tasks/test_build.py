"""The configured task is the one that is built."""

import json

import pytest

from trainer.rl.tasks.build import build_environment, build_task
from trainer.rl.tasks.config import TaskConfig


@pytest.mark.parametrize("kind", ["arithmetic", "sorting", "countdown", "jsonl"])
def test_a_right_answer_scores_one_in_the_environment_of_each_task(kind, codec, tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"prompt": "6*7", "answer": "42"}))
    config = TaskConfig(kind=kind, path=str(path), length=2, operations="-")
    task = build_task(config, seed=5)
    question = task.question(1)
    reference = question.reference
    if kind == "countdown":
        left, right = reference["numbers"]
        forms = [f"{left}+{right}", f"{right}-{left}", f"{left}*{right}"]
    else:
        forms = [reference["answer"]]
    scores = []
    for form in forms:
        environment = build_environment(config, task, codec, question)
        assert environment.step(codec.encode(form)).done
        scores.append(environment.score())
    assert max(scores) == 1.0


def test_turns_are_those_of_the_recipe(codec):
    config = TaskConfig(max_turns=2, retry_text="?", turn_discount=0.5)
    task = build_task(config, seed=5)
    environment = build_environment(config, task, codec, task.question(0))
    assert environment.step(codec.encode("no")).observation == codec.encode("?")
    environment.step(codec.encode(task.question(0).reference["answer"]))
    assert environment.score() == 0.5
