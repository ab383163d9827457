"""How prompts are answered, the same for all prompts of a run. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.rl.engine.request import Sampling
from trainer.rl.tasks.config import TaskConfig
from trainer.rl.tasks.prompts import PromptBook
from trainer.rl.tasks.question import Codec, Task

Reference = Callable[[Sequence[Sequence[int]]], list[NDArray[np.float32]]]
"""Log-probability of each token of some texts, 0 for the first one."""


@dataclass(frozen=True, kw_only=True)
class AnswerRules:
    """What decides, with weights and a prompt's number, what is sampled."""

    task_config: TaskConfig
    task: Task
    codec: Codec
    book: PromptBook
    samples: int
    """Answers to each prompt."""

    seed: int
    """Of the run."""

    sampling: Sampling
    """Of each turn."""

    longest_tokens: int
    """Of an episode, from prompt to end."""

    reference: Reference | None = None
    """Where a distance to a reference model is wanted."""
