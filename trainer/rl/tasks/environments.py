"""Environments made from tasks: one answer, or another try after a wrong one. Free of torch."""

from collections.abc import Sequence

from trainer.rl.tasks.question import Codec, Question, Task, Turn


class AnswerEnvironment:
    """Up to `max_turns` answers to a question; after a wrong one the policy reads `retry_text`.

    The reward is the task's for the last answer, times `turn_discount` for each one before it.
    """

    def __init__(
        self,
        task: Task,
        codec: Codec,
        question: Question,
        *,
        max_turns: int = 1,
        retry_text: str = "",
        turn_discount: float = 1.0,
    ) -> None:
        self._task = task
        self._codec = codec
        self._question = question
        self._max_turns = max_turns
        self._retry_tokens = codec.encode(retry_text) if max_turns > 1 else ()
        if max_turns > 1 and not self._retry_tokens:
            raise ValueError(f"retry_text={retry_text!r} has no tokens; nothing would part answers")
        self._turn_discount = turn_discount
        self._answers: list[str] = []

    def step(self, tokens: Sequence[int]) -> Turn:
        """See `Environment`. Raises ValueError once the episode is over."""
        if self._answers and self._is_over():
            raise ValueError(f"{self._question.where} is answered; start another environment")
        self._answers.append(self._codec.decode(tokens))
        return Turn(True) if self._is_over() else Turn(False, self._retry_tokens)

    def answer(self) -> str:
        """The last answer; empty before the first."""
        return self._answers[-1] if self._answers else ""

    def score(self) -> float:
        """See `Environment`; 0 before the first answer."""
        if not self._answers:
            return 0.0
        reward = self._task.score(self._question, self._answers[-1])
        return reward * self._turn_discount ** (len(self._answers) - 1)

    def _is_over(self) -> bool:
        if len(self._answers) >= self._max_turns:
            return True
        return self._task.score(self._question, self._answers[-1]) >= 1.0
