"""What is wrong with a recipe, each with its place, all reported together."""

from collections.abc import Iterable
from dataclasses import dataclass

from trainer.errors import RecipeError


@dataclass(frozen=True, order=True)
class Origin:
    """Where a value was written."""

    place: str
    """File, or `command line`, or `default`."""

    line: int = 0
    """Line in the file, from 1; 0 where there is none."""

    is_default: bool = False
    """Whether the value counts as a default although a file has it."""

    def __str__(self) -> str:
        return f"{self.place}:{self.line}" if self.line else self.place


COMMAND_LINE = Origin("command line")
DEFAULT = Origin("default", is_default=True)


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: where, at which dotted key (empty for a whole file), and the remedy."""

    origin: Origin
    key: str
    message: str

    def __str__(self) -> str:
        if not self.key or self.message.startswith(self.key):
            return f"{self.origin}: {self.message}"
        return f"{self.origin}: {self.key}: {self.message}"


class RecipeProblems(RecipeError):
    """A recipe that cannot be run, with every mistake found in it."""

    def __init__(self, title: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        count = len(self.problems)
        heading = f"{count} problem{'s' if count != 1 else ''} in {title}"
        super().__init__("\n".join([heading, *(f"  {problem}" for problem in self.problems)]))
