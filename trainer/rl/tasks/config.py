"""What a policy is asked, as the recipe says it. Pure data: neither torch nor ray."""

import re
from dataclasses import dataclass
from typing import Literal

FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Where questions come from and how answers to them are scored."""

    kind: Literal["arithmetic", "sorting", "countdown", "jsonl", "own"] = "arithmetic"
    """Source of questions. The first three are made up and scored by rules; `jsonl` reads them;
    `own` calls `factory`."""

    factory: str = ""
    """own: `module:function`, called as function(seed=...), returning a `Task` of
    trainer/rl/tasks/question.py."""

    environment: str = ""
    """`module:function`, called as function(task, codec, question), returning an `Environment` of
    the same file; empty: one that takes up to `max_turns` answers."""

    digits: int = 2
    """arithmetic, sorting: most digits of a number."""

    operations: str = "+"
    """arithmetic: the operations asked for, a selection of `+-*`."""

    length: int = 4
    """sorting: most numbers to sort; countdown: how many numbers are given."""

    format_credit: float = 0.0
    """countdown: reward of a well-formed expression that misses the target."""

    path: str = ""
    """jsonl: file with one JSON object per line."""

    prompt_field: str = "prompt"
    """jsonl: field with the question."""

    answer_field: str = "answer"
    """jsonl: field with the answer. The whole object goes to a reward function."""

    match: Literal["exact", "number"] = "exact"
    """jsonl: an answer is right if its text is that of the field, or if its last number is."""

    max_turns: int = 1
    """Answers a policy may give to a question: after a wrong one it reads `retry_text`."""

    retry_text: str = "\nWrong. Try again: "
    """What it then reads; not trained on."""

    turn_discount: float = 1.0
    """Factor on the reward for each answer before the last."""

    def __post_init__(self) -> None:
        for name in ("digits", "max_turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"rl.task.{name}={getattr(self, name)} must be at least 1")
        if self.length < 2:
            raise ValueError(f"rl.task.length={self.length} must be at least 2")
        if self.kind == "countdown" and self.length > 6:
            raise ValueError(f"rl.task.length={self.length}: countdown uses at most 6 numbers")
        if not self.operations or set(self.operations) - set("+-*"):
            raise ValueError(f"rl.task.operations={self.operations!r} must be some of '+-*'")
        for name in ("format_credit", "turn_discount"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"rl.task.{name}={getattr(self, name)} must be in [0, 1]")
        if (self.kind == "own") != bool(self.factory):
            raise ValueError("rl.task.factory=module:function and rl.task.kind=own need each other")
        for name in ("factory", "environment"):
            value = getattr(self, name)
            if value and not FACTORY.fullmatch(value):
                raise ValueError(f"rl.task.{name}={value!r} must be module:function")
        if self.kind == "jsonl" and not self.path:
            raise ValueError("rl.task.kind=jsonl needs rl.task.path, a file with JSON lines")
