import json
from dataclasses import replace

import pytest

from trainer.data.config import DataConfig
from trainer.data.tokenizer import Tokenizer, byte_tokenizer, prepare_tokenizer
from trainer.errors import DataError
from trainer.rl.tasks.build import build_task
from trainer.rl.tasks.config import TaskConfig
from trainer.rl.tasks.solved import solved_text, with_solved_questions

SUMS = TaskConfig(digits=2)


def documents(task, **arguments):
    return [json.loads(line)["text"] for line in solved_text(task, **arguments).splitlines()]


def test_documents_are_questions_with_right_answers():
    for task in (SUMS, TaskConfig(kind="sorting")):
        built = build_task(task, seed=0)
        for text in documents(task, seed=5, count=30):
            sign = "=" if task.kind == "arithmetic" else ": "
            asked, answer = text.split(sign)
            if task.kind == "arithmetic":
                assert eval(asked) == int(answer)
            else:
                numbers = asked.removeprefix("sort ").split()
                assert answer.split() == sorted(numbers, key=int)
        assert built.size is None


def test_they_are_a_function_of_seed_and_number_and_not_the_rewarded_ones():
    first = documents(SUMS, seed=5, count=300)
    assert first[:20] == documents(SUMS, seed=5, count=20)
    assert first[:20] != documents(SUMS, seed=6, count=20)
    rewarded = [build_task(SUMS, seed=5).question(i).text for i in range(300)]
    assert [text.split("=")[0] for text in first] != [text.split("=")[0] for text in rewarded]


def test_the_file_takes_the_place_of_the_source(tmp_path):
    data = DataConfig(source="task", task_questions=40, cache_dir=str(tmp_path))
    found = with_solved_questions(data, SUMS, seed=1)
    assert found.format == "jsonl"
    with open(found.source, "rb") as file:
        assert file.read() == solved_text(SUMS, seed=1, count=40)
    assert with_solved_questions(data, SUMS, seed=1) == found
    other = replace(data, source="elsewhere")
    assert with_solved_questions(other, SUMS, seed=1) is other


def test_for_training_on_answers_alone_they_are_two_texts(tmp_path):
    data = DataConfig(source="task", kind="answers", task_questions=40, cache_dir=str(tmp_path))
    with open(with_solved_questions(data, SUMS, seed=1).source, "rb") as file:
        apart = [json.loads(line)["text"] for line in file]
    assert ["".join(pair) for pair in apart] == documents(SUMS, seed=1, count=40)
    assert all(question.endswith("=") for question, _ in apart)


def test_a_file_of_questions_is_used_once(tmp_path):
    path = tmp_path / "task.jsonl"
    rows = [{"q": f"{i}?", "a": i} for i in range(7)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskConfig(kind="jsonl", path=str(path), prompt_field="q", answer_field="a")
    assert sorted(documents(task, seed=0, count=50)) == [f"{i}?{i}" for i in range(7)]


def test_a_task_without_answers_is_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"countdown question 0.*rl\.task\.kind"):
        solved_text(TaskConfig(kind="countdown"), seed=0, count=3)


def test_bytes_are_a_tokenizer_without_merges(tmp_path):
    tokenizer = prepare_tokenizer(DataConfig(tokenizer="bytes"), None)
    text = "12+7=19 é\n<|endoftext|>"
    (tokens,) = tokenizer.encode_batch([text])
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens.tolist()) == text
    assert tokenizer.eos_id not in tokens
    assert tokenizer.vocab_size == 259
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == byte_tokenizer().fingerprint
