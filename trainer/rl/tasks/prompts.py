"""Questions as prompts within a token budget. Free of torch."""

from dataclasses import dataclass

from trainer.errors import DataError
from trainer.rl.tasks.question import Codec, Question, Task


@dataclass(frozen=True)
class Prompt:
    """A question and its tokens."""

    question: Question
    tokens: tuple[int, ...]


class PromptBook:
    """The prompts of a task by index. Its state is one number, the caller's next index."""

    def __init__(self, task: Task, codec: Codec, *, max_prompt_tokens: int) -> None:
        self._task = task
        self._codec = codec
        self._max_prompt_tokens = max_prompt_tokens

    def prompt(self, index: int) -> Prompt:
        """The prompt at `index`. Raises DataError where it is empty or over the budget."""
        question = self._task.question(index)
        tokens = self._codec.encode_prompt(question.text)
        if not tokens:
            raise DataError(f"{question.where}: the prompt has no tokens; give it a text")
        if len(tokens) > self._max_prompt_tokens:
            raise DataError(
                f"{question.where}: the prompt has {len(tokens)} tokens, the budget is "
                f"{self._max_prompt_tokens}; raise rl.max_prompt_tokens, or shorten or remove it"
            )
        return Prompt(question, tokens)

    def verify(self) -> None:
        """Raise DataError now if any prompt of a finite task would be refused later."""
        for index in range(self._task.size or 0):
            self.prompt(index)
