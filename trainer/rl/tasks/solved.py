"""Solved questions of a task as documents, for supervised steps. Free of torch.

Guarantees, each asserted in tests/trainer/rl/tasks/test_solved.py:
- the documents are a function of task, seed and number alone;
- a document is a question and its answer, as a policy reads and writes them, in one text or, for
  training on answers alone, in two;
- of a task that makes its questions up, none is drawn from the series that rewards are learned on.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from trainer.data.cache import make_folder, written_aside
from trainer.data.config import DataConfig
from trainer.errors import DataError
from trainer.rl.tasks.build import build_task
from trainer.rl.tasks.config import TaskConfig
from trainer.rl.tasks.question import Question

SOURCE = "task"
"""What `data.source` says for it."""

SERIES = 7919
"""Added to the seed: another series of questions."""


def with_solved_questions(data: DataConfig, task: TaskConfig, *, seed: int) -> DataConfig:
    """`data` with the questions as a file in place of the source, where that is `task`.

    Every process may call it. Raises DataError where the task knows no answers.
    """
    if data.source != SOURCE:
        return data
    apart = data.kind == "answers"
    text = solved_text(task, seed=seed, count=data.task_questions, apart=apart)
    name = hashlib.blake2b(text, digest_size=16).hexdigest()
    folder = make_folder(Path(data.cache_dir).expanduser() / "tasks" / name)
    path = folder / "questions.jsonl"
    if not path.is_file():
        with written_aside(path) as file:
            file.write(text)
    return replace(data, source=str(path), format="jsonl", text_field="text")


def solved_text(task: TaskConfig, *, seed: int, count: int, apart: bool = False) -> bytes:
    """JSON lines with a question and its answer each, `apart` as a list of two texts; of a finite
    task no more than it has."""
    built = build_task(task, seed=seed + SERIES)
    field = task.answer_field if task.kind == "jsonl" else "answer"
    total = count if built.size is None else min(count, built.size)
    lines = []
    for index in range(total):
        question = built.question(index)
        answer = _answer(question, field)
        document = [question.text, answer] if apart else question.text + answer
        lines.append(json.dumps({"text": document}, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _answer(question: Question, field: str) -> str:
    found = question.reference.get(field)
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        raise DataError(
            f"{question.where}: data.source=task needs the answer as a text or number in the "
            f"question's reference, under {field!r}; choose another rl.task.kind, or a data.source "
            "of texts"
        )
    return str(found)
