"""What tasks and environments are. Free of torch.

A `Task` asks and scores texts. An `Environment` lets a policy act in one question, tokens in and
tokens out. Own ones need no base class: any object with these methods will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a task."""

    index: int
    """Its place in the task's order."""

    text: str
    """What the policy reads first."""

    reference: Mapping[str, Any]
    """What scoring needs to know; plain JSON values, given to reward functions as well."""

    where: str
    """Where it comes from, for messages: `file:line`, or the task and index."""


class Task(Protocol):
    """Questions by index, endlessly, and the score of answers to them."""

    @property
    def size(self) -> int | None:
        """Different questions there are; None where they are made up."""

    def question(self, index: int) -> Question:
        """The question at `index`: a function of the task's seed and `index` alone, so that a
        cursor is one number. Called for each prompt, again after a restart."""

    def extract(self, answer: str) -> str | None:
        """The final answer in the text, in a form in which equal answers are equal texts; None
        where there is none. Called where answers are compared with each other."""

    def score(self, question: Question, answer: str) -> float:
        """Reward of `answer`, from 0 to 1. Called once an answer is complete."""


class Codec(Protocol):
    """Text to tokens and back."""

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Tokens of a question, with what the model expects before it."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a text in the middle of an episode."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of sampled tokens. Never encoded again."""


@dataclass(frozen=True)
class Turn:
    """What the environment answers to sampled tokens."""

    done: bool
    """Whether the episode is over."""

    observation: tuple[int, ...] = ()
    """Tokens the policy reads before it goes on; not trained on."""


class Environment(Protocol):
    """One question being answered. Deterministic: the same actions lead to the same turns, so an
    episode is restored by its actions alone."""

    def step(self, tokens: Sequence[int]) -> Turn:
        """Act. Called with each stretch of sampled tokens, in order, until a turn is done."""

    def answer(self) -> str:
        """The text to be judged, for reward functions. Called once the episode is over."""

    def score(self) -> float:
        """Reward of the episode. Called once the episode is over."""
