"""Sums, differences and products of whole numbers. Free of torch."""

import re
from random import Random

from trainer.rl.tasks.question import Question

NUMBER = re.compile(r"-?\d+")
MAX_ANSWER_CHARACTERS = 64
"""Longer numbers are no answer to anything asked here, and slow to convert."""


class Arithmetic:
    """Asks `12+7=` and wants `19`: the answer is the first thing written.

    Questions are drawn evenly over the operations and over the numbers of up to `digits` digits.
    """

    size = None

    def __init__(self, *, seed: int, digits: int = 2, operations: str = "+") -> None:
        self._seed = seed
        self._digits = digits
        self._operations = operations

    def question(self, index: int) -> Question:
        """See `Task`."""
        random = Random(f"arithmetic/{self._seed}/{index}")
        left, right = (random.randrange(10**self._digits) for _ in range(2))
        sign = self._operations[random.randrange(len(self._operations))]
        results = {"+": left + right, "-": left - right, "*": left * right}
        return Question(
            index=index,
            text=f"{left}{sign}{right}=",
            reference={"answer": str(results[sign])},
            where=f"arithmetic question {index}",
        )

    def extract(self, answer: str) -> str | None:
        """The number the answer begins with."""
        found = NUMBER.match(answer.strip())
        if found is None or len(found[0]) > MAX_ANSWER_CHARACTERS:
            return None
        return str(int(found[0]))

    def score(self, question: Question, answer: str) -> float:
        """1 if the first line is the number and nothing else, else 0."""
        line = answer.strip().split("\n", 1)[0].strip()
        right = NUMBER.fullmatch(line) and self.extract(line) == question.reference["answer"]
        return 1.0 if right else 0.0
