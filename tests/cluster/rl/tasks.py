"""A task whose reward is dense, so that the smallest model learns within a few steps."""

import time

from trainer.rl.tasks.question import Question


class Low:
    """Wants bytes of ASCII: half of all tokens. The reward is the share of characters that are."""

    size = None

    def __init__(self, *, seed: int) -> None:
        self._seed = seed

    def question(self, index: int) -> Question:
        """See `Task`."""
        return Question(
            index=index, text="?", reference={"answer": "abc"}, where=f"question {index}"
        )

    def extract(self, answer: str) -> str | None:
        """The whole answer."""
        return answer

    def score(self, question: Question, answer: str) -> float:
        """Of an empty answer, 0."""
        return sum(character < "\x80" for character in answer) / max(len(answer), 8)


class SlowLow(Low):
    """Takes its time to score, as a task does that runs programs."""

    def score(self, question: Question, answer: str) -> float:
        """See `Low`."""
        time.sleep(0.05)
        return super().score(question, answer)


def reward(prompt, completions, reference):
    """The same as a reward function."""
    return [sum(c < "\x80" for c in text) / max(len(text), 8) for text in completions]
