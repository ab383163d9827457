"""Numbers to put in order. Free of torch."""

from random import Random

from trainer.rl.tasks.question import Question


class Sorting:
    """Asks `sort 5 3 9: ` and wants `3 5 9`.

    Two to `length` numbers of up to `digits` digits, repetitions included.
    """

    size = None

    def __init__(self, *, seed: int, length: int = 4, digits: int = 2) -> None:
        self._seed = seed
        self._length = length
        self._digits = digits

    def question(self, index: int) -> Question:
        """See `Task`."""
        random = Random(f"sorting/{self._seed}/{index}")
        count = random.randrange(2, self._length + 1)
        numbers = [random.randrange(10**self._digits) for _ in range(count)]
        return Question(
            index=index,
            text=f"sort {' '.join(map(str, numbers))}: ",
            reference={"answer": " ".join(map(str, sorted(numbers)))},
            where=f"sorting question {index}",
        )

    def extract(self, answer: str) -> str | None:
        """The first line, its numbers one space apart."""
        words = answer.strip().split("\n", 1)[0].split()
        return " ".join(words) if words and all(word.isdecimal() for word in words) else None

    def score(self, question: Question, answer: str) -> float:
        """The share of places that hold the right number; 0 unless there are as many as asked."""
        wanted = question.reference["answer"].split()
        found = (self.extract(answer) or "").split()
        if len(found) != len(wanted):
            return 0.0
        return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)
