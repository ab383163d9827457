"""Questions from a file with one JSON object per line. Free of torch.

Guarantees, each asserted in tests/trainer/rl/tasks/test_jsonl.py:
- the question at an index is a function of file, seed and index; each epoch asks each line once;
- a line that is no question is an error that names file and line, before anything is trained.
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from trainer.data.order import block_order
from trainer.errors import DataError
from trainer.rl.tasks.question import Question

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class JsonlTask:
    """The lines of a file in an order of their own in each epoch.

    An answer is right if its text is the line's (`exact`, spaces at its ends aside), or if the last
    number in it is the last one of the line's (`number`).
    """

    def __init__(
        self,
        path: Path | str,
        *,
        seed: int,
        prompt_field: str = "prompt",
        answer_field: str = "answer",
        match: Literal["exact", "number"] = "exact",
    ) -> None:
        """Read the file. Raises DataError where it is missing, empty, or a line is no question."""
        self._path = Path(path).expanduser()
        self._seed = seed
        self._prompt_field = prompt_field
        self._answer_field = answer_field
        self._match = match
        self._rows = _read_rows(self._path, (prompt_field, answer_field))
        self._order = lru_cache(maxsize=2)(self._order_of)

    @property
    def size(self) -> int:
        """Lines that are questions."""
        return len(self._rows)

    def question(self, index: int) -> Question:
        """See `Task`."""
        epoch, place = divmod(index, len(self._rows))
        line, row = self._rows[self._order(epoch)[place]]
        return Question(
            index=index,
            text=str(row[self._prompt_field]),
            reference=row,
            where=f"{self._path}:{line}",
        )

    def extract(self, answer: str) -> str | None:
        """The text without spaces at its ends, or its last number."""
        if self._match == "exact":
            return answer.strip() or None
        found = NUMBER.findall(answer)
        return _plain_number(found[-1]) if found else None

    def score(self, question: Question, answer: str) -> float:
        """1 or 0."""
        wanted = self.extract(str(question.reference[self._answer_field]))
        return 1.0 if wanted is not None and self.extract(answer) == wanted else 0.0

    def _order_of(self, epoch: int) -> list[int]:
        return block_order(len(self._rows), seed=self._seed, epoch=epoch).tolist()


def _read_rows(path: Path, fields: tuple[str, str]) -> list[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            f"the task file {path} cannot be read ({error.strerror}); correct rl.task.path"
        ) from error
    rows = [
        (number, _read_row(f"{path}:{number}", line, fields))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise DataError(f"the task file {path} has no questions; put one JSON object on each line")
    return rows


def _read_row(where: str, line: bytes, fields: tuple[str, str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON ({error}); correct or remove the line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: {type(row).__name__} instead of an object {{...}}; correct it")
    for field in fields:
        value = row.get(field)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
            known = ", ".join(row) or "none"
            raise DataError(
                f"{where}: field {field!r} must hold a text or a number (fields: {known}); correct "
                "the line, or set rl.task.prompt_field and rl.task.answer_field"
            )
    return row


def _plain_number(text: str) -> str:
    """1,234.50 as 1234.5."""
    digits = text.replace(",", "")
    whole, _, fraction = digits.partition(".")
    fraction = fraction.rstrip("0")
    whole = re.sub(r"^(-?)0+(?=\d)", r"\1", whole)
    return f"{whole}.{fraction}" if fraction else whole
