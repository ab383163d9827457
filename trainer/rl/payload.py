"""What `Kept.payload` holds: the answers to one prompt, as far as they are. No torch.

Arrays are base64 of little-endian values: a quarter of the bytes of JSON numbers, and exact. T
tokens of an answer with its prompt and observations, M mixture layers, k experts per token.

Guarantees, each asserted in tests/trainer/rl/test_payload.py:
- what is read is bitwise what was written, also after JSON;
- what is damaged or lacks something is refused.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.rl.ledger_records import Kept

_DTYPES: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("<i4"),
    "loss_mask": np.dtype("<i1"),
    "log_probs": np.dtype("<f4"),
    "model_log_probs": np.dtype("<f4"),
    "kept_log_mass": np.dtype("<f4"),
    "versions": np.dtype("<i4"),
}
_PLAIN = ("prompt_tokens", "open_tokens", "ended", "cut", "text", "final", "score")


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """One answer. Arrays are [T]; see `trainer.rl.messages.Sample` for most of them."""

    prompt_tokens: int
    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.int8]
    log_probs: NDArray[np.float32]
    model_log_probs: NDArray[np.float32]
    kept_log_mass: NDArray[np.float32]
    """Log of the probability that top-k and top-p left to draw from."""

    versions: NDArray[np.int32]
    open_tokens: int = 0
    """The last ones, which belong to a turn that is not over."""

    ended: bool = False
    cut: bool = False
    """Whether a limit ended it."""

    text: str = ""
    """To be judged."""

    final: str | None = None
    """The final answer in it, equal for equal answers; None where none was found."""

    score: float | None = None
    """By the environment."""

    reference_log_probs: NDArray[np.float32] | None = None
    routing: NDArray[np.int16] | None = None
    """[T - 1, M, k]."""

    def __post_init__(self) -> None:
        sizes = {name: len(vars(self)[name]) for name in _DTYPES}
        if self.reference_log_probs is not None:
            sizes["reference_log_probs"] = len(self.reference_log_probs)
        if set(sizes.values()) != {len(self.tokens)}:
            raise ValueError(f"an answer's arrays have lengths {sizes}; give one entry per token")

    @property
    def response_tokens(self) -> int:
        """Sampled ones."""
        return int(self.loss_mask.sum())

    @property
    def longest_turn(self) -> int:
        """Sampled tokens of its longest turn."""
        padded = np.concatenate(([0], self.loss_mask, [0]))
        edges = np.flatnonzero(np.diff(padded))
        return int((edges[1::2] - edges[::2]).max(initial=0))

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        plain: dict[str, Any] = {name: vars(self)[name] for name in _PLAIN}
        plain |= {name: _text(vars(self)[name], dtype) for name, dtype in _DTYPES.items()}
        if self.reference_log_probs is not None:
            plain["reference_log_probs"] = _text(self.reference_log_probs, np.dtype("<f4"))
        if self.routing is not None:
            plain["routing"] = _text(self.routing, np.dtype("<i2"))
            plain["routing_shape"] = list(self.routing.shape)
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "AnswerRecord":
        """Raises KeyError, TypeError or ValueError for what `to_plain` never gave."""
        values: dict[str, Any] = {name: plain[name] for name in _PLAIN}
        values |= {name: _array(plain[name], dtype) for name, dtype in _DTYPES.items()}
        if "reference_log_probs" in plain:
            values["reference_log_probs"] = _array(plain["reference_log_probs"], np.dtype("<f4"))
        if "routing" in plain:
            routing = _array(plain["routing"], np.dtype("<i2"))
            values["routing"] = routing.reshape(plain["routing_shape"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class PromptRecord:
    """A prompt with its answers."""

    prompt: str
    reference: Mapping[str, Any]
    """For reward functions: JSON values."""

    answers: tuple[AnswerRecord, ...]

    def kept(self) -> Kept | None:
        """For the ledger; None where nothing was sampled."""
        drawn = [a.versions[a.loss_mask == 1] for a in self.answers]
        versions = np.concatenate(drawn) if drawn else np.empty(0, np.int32)
        if not len(versions):
            return None
        return Kept(payload=self.to_plain(), oldest=int(versions.min()), newest=int(versions.max()))

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "prompt": self.prompt,
            "reference": dict(self.reference),
            "answers": [answer.to_plain() for answer in self.answers],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "PromptRecord":
        """Raises ValueError for what `to_plain` never gave."""
        try:
            answers: Sequence[Mapping[str, Any]] = plain["answers"]
            return cls(
                prompt=plain["prompt"],
                reference=plain["reference"],
                answers=tuple(AnswerRecord.from_plain(answer) for answer in answers),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the answers to a prompt cannot be read ({error!r}); have it answered again"
            ) from error


def _text(values: NDArray[Any], dtype: np.dtype[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


def _array(text: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype).copy()
