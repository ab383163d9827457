"""One answer under way, and the group of answers to its prompt. No torch."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainer.rl.engine.drafts import CopyIndex
from trainer.rl.engine.request import Answer, Reason, Request, Sampling


@dataclass(eq=False)
class Group:
    """Answers to one prompt, which share its blocks."""

    request: Request
    unfinished: list["Sequence"] = field(default_factory=list)
    copies: CopyIndex | None = None
    """Where runs of tokens occurred in the prompt and in any of its answers."""


class Sequence:
    """Tokens of one answer, and where their keys and values are."""

    def __init__(self, group: Group, sample: int, order: int) -> None:
        request = group.request
        begun = list(request.started[sample]) if request.started else []
        self.group = group
        self.order = order
        """Place in the order of arrival."""
        self.prompt_tokens = len(request.prompt)
        self.tokens: list[int] = [*request.prompt, *begun]
        self.stored = 0
        """Leading tokens whose keys and values are in `blocks`."""
        self.blocks: list[int] = []
        self.admitted = False
        """Whether it takes part in steps."""
        self.kv_epoch = 0
        """Which loading of weights began the keys and values."""
        self.sampling: Sampling = request.sampling
        self.answer = Answer(
            request_id=request.id, sample=sample, seed=request.seeds[sample], tokens=begun
        )
        self.routes: list[NDArray[np.int16]] = []
        """Routing of stored tokens, in pieces [tokens, mixture layers, k]."""

    @property
    def pending(self) -> int:
        """Known tokens that are not stored; 1 where only the next one is missing."""
        return len(self.tokens) - self.stored

    def append(self, token: int) -> Reason:
        """Add a drawn token; whether the answer goes on after it."""
        tokens, sampling = self.answer.tokens, self.sampling
        self.tokens.append(token)
        tokens.append(token)
        if token in sampling.stop_ids:
            return "stop"
        if any(ends_with(tokens, run) for run in sampling.stop_sequences):
            return "stop"
        return "length" if len(tokens) >= sampling.max_new_tokens else "running"

    def forget(self) -> list[int]:
        """Let go of keys and values, to be computed again; the blocks that held them."""
        blocks, self.blocks, self.stored, self.routes = self.blocks, [], 0, []
        self.admitted = False
        return blocks

    def routing(self) -> NDArray[np.int16] | None:
        """Experts of all stored tokens."""
        return np.concatenate(self.routes)[: self.stored] if self.routes else None


def ends_with(tokens: list[int], run: tuple[int, ...]) -> bool:
    """Whether the last tokens are `run`."""
    return tokens[-1] == run[-1] and tuple(tokens[-len(run) :]) == run
