"""Questions from a file: their order, their scores, and lines that are none."""

import json

import pytest

from trainer.errors import DataError
from trainer.rl.tasks.jsonl import JsonlTask


def write(folder, *lines):
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def rows(count):
    return [{"prompt": f"q{i}", "answer": str(i), "level": i} for i in range(count)]


def test_each_epoch_asks_each_line_once_in_an_order_of_its_own(tmp_path):
    path = write(tmp_path, *rows(20))
    task = JsonlTask(path, seed=3)
    epochs = [[task.question(e * 20 + i).text for i in range(20)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"q{i}" for i in range(20))
    assert epochs[0] != epochs[1]
    again = JsonlTask(path, seed=3)
    assert [again.question(i).text for i in range(20, 40)] == epochs[1]
    assert [JsonlTask(path, seed=4).question(i).text for i in range(20)] != epochs[0]


def test_a_question_carries_its_line_for_reward_functions(tmp_path):
    task = JsonlTask(write(tmp_path, "", *rows(1)), seed=0)
    question = task.question(5)
    assert question.reference == {"prompt": "q0", "answer": "0", "level": 0}
    assert question.where.endswith("tasks.jsonl:2")
    assert task.size == 1


@pytest.mark.parametrize(
    ("match", "answer", "score"),
    [
        ("exact", " 1,250.0 ", 1.0),
        ("exact", "1250", 0.0),
        ("number", "so it is 3, no: $1250.", 1.0),
        ("number", "1250 or 12", 0.0),
        ("number", "none", 0.0),
    ],
)
def test_scores(tmp_path, match, answer, score):
    path = write(tmp_path, {"prompt": "?", "answer": "1,250.0"})
    task = JsonlTask(path, seed=0, match=match)
    assert task.score(task.question(0), answer) == score


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a"', r"tasks\.jsonl:2: no JSON"),
        ("[1]", r"tasks\.jsonl:2: list instead of an object"),
        ('{"prompt": "a"}', r"tasks\.jsonl:2: field 'answer' must hold .*fields: prompt"),
        ('{"prompt": "", "answer": "1"}', r"tasks\.jsonl:2: field 'prompt'"),
        ('{"prompt": null, "answer": "1"}', r"tasks\.jsonl:2: field 'prompt'"),
        ('{"prompt": "a", "answer": true}', r"tasks\.jsonl:2: field 'answer'"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, line, says):
    with pytest.raises(DataError, match=says):
        JsonlTask(write(tmp_path, *rows(1), line), seed=0)


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b'{"prompt": "\xff", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"tasks\.jsonl:1: no JSON"):
        JsonlTask(path, seed=0)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path, text):
    path = tmp_path / "tasks.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match="has no questions"):
        JsonlTask(path, seed=0)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"correct rl\.task\.path"):
        JsonlTask(tmp_path / "none.jsonl", seed=0)
