"""What a rollout engine is asked for, and what it answers. No torch."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Reason = Literal["stop", "length", "cancelled", "running"]
"""`stop`: a stop token or sequence, which is the end of the answer. `length`: a limit."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn, and when an answer ends."""

    max_new_tokens: int = 256
    """Longest answer, tokens that were given at the start included."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""

    top_k: int = 0
    """Keeps the k likeliest tokens; 0 keeps all."""

    top_p: float = 1.0
    """Then keeps the fewest likeliest ones that hold this probability (arXiv 1904.09751)."""

    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer and belong to it."""

    stop_sequences: tuple[tuple[int, ...], ...] = ()
    """Runs of tokens that do the same."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not (self.temperature >= 0.0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature={self.temperature} must be a finite number and not negative; 0 takes "
                "the likeliest token"
            )
        if self.top_k < 0 or not 0.0 < self.top_p <= 1.0:
            raise ValueError(
                f"top_k={self.top_k} must not be negative (0 keeps all tokens) and top_p="
                f"{self.top_p} must lie in (0, 1]"
            )
        if any(not run for run in self.stop_sequences):
            raise ValueError("a stop sequence has no tokens and would end every answer; remove it")

    @property
    def truncates(self) -> bool:
        """Whether some tokens can never be drawn although the model gives them a probability."""
        return self.temperature > 0.0 and (self.top_k > 0 or self.top_p < 1.0)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and the answers wanted to it."""

    id: str
    prompt: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    """One per answer, below 2^63: an answer is a function of weights, prompt, sampling and seed."""

    sampling: Sampling = Sampling()
    started: tuple[tuple[int, ...], ...] = ()
    """Per answer, tokens that it begins with, such as those of a worker that was lost; empty for
    none."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(f"request {self.id!r} has no prompt tokens; give at least one")
        if not self.seeds or not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(
                f"request {self.id!r} has seeds {self.seeds}; give one per answer, each in "
                "[0, 2^63)"
            )
        if self.started and len(self.started) != len(self.seeds):
            raise ValueError(
                f"request {self.id!r} starts {len(self.started)} answers and has "
                f"{len(self.seeds)} seeds; give one beginning per seed, () where there is none"
            )
        longest = max(map(len, self.started), default=0)
        if longest >= self.sampling.max_new_tokens:
            raise ValueError(
                f"request {self.id!r} starts an answer with {longest} tokens of at most "
                f"{self.sampling.max_new_tokens}; raise max_new_tokens, or leave the answer out"
            )


@dataclass(kw_only=True)
class Answer:
    """Tokens of one answer and what was known when each was drawn. The lists have one entry per
    token that the engine drew, which are the last of `tokens`."""

    request_id: str
    sample: int
    seed: int
    tokens: list[int]
    """Those it began with included."""

    reason: Reason = "running"
    logprobs: list[float] = field(default_factory=list)
    """Of the distribution that was sampled from: after temperature, top-k and top-p, fp32."""

    model_logprobs: list[float] = field(default_factory=list)
    """Of the model: log-softmax of the logits as they are, fp32."""

    kept_log_mass: list[float] = field(default_factory=list)
    """Log of the probability, at the temperature, that top-k and top-p left; 0 without them."""

    versions: list[int] = field(default_factory=list)
    """Version of the weights that drew the token."""

    kept_ids: list[NDArray[np.int32] | None] = field(default_factory=list)
    """With `record_masks`, the tokens that could be drawn; None for all."""

    routing: NDArray[np.int16] | None = None
    """With `record_routing`: experts [tokens, mixture layers, k] of prompt and answer, without the
    last token, which no forward has seen."""

    def copied(self) -> "Answer":
        """As it is now, whatever is drawn later."""
        own = vars(self).items()
        lists: dict[str, Any] = {name: list(value) for name, value in own if type(value) is list}
        return replace(self, **lists)


class Drawn(NamedTuple):
    """One new token of an answer under way."""

    request_id: str
    sample: int
    token: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step of the engine brought."""

    drawn: list[Drawn]
    finished: list[Answer]


@dataclass(kw_only=True)
class EngineStats:
    """Counts since the engine was made, and what it holds now."""

    version: int = 0
    steps: int = 0
    forward_tokens: int = 0
    """Rows that forwards had, drafts and recomputed tokens included."""

    drawn_tokens: int = 0
    preemptions: int = 0
    """Times that an answer gave its blocks back to make room; it loses time and no token."""

    copied_blocks: int = 0
    """Shared blocks that were copied because an answer wrote to them."""

    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    running: int = 0
    waiting: int = 0
    blocks: int = 0
    free_blocks: int = 0
