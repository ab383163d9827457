"""Settings of the rollout engine. No torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How much a rollout engine holds, computes per forward, and records."""

    kv_bytes: int = 256 * 2**20
    """Memory for keys and values, all layers together; it is taken once."""

    block_tokens: int = 32
    """Tokens per block of keys and values; smaller wastes less, larger computes faster."""

    max_sequences: int = 64
    """Answers under way at once."""

    forward_tokens: int = 256
    """Tokens per forward: prompts are cut to what the running answers leave of it (Dynamic
    SplitFuse, arXiv 2401.08671), so that a long prompt does not hold up the others."""

    max_draft_tokens: int = 0
    """Longest continuation copied from earlier text and checked in one forward; 0 copies none.
    Drafts change no token that is sampled, only how soon it is; their length follows measured
    times, so log-probabilities vary by rounding from run to run."""

    draft_match_tokens: int = 2
    """Latest tokens that must have occurred before for a copy."""

    on_new_weights: Literal["keep", "recompute"] = "keep"
    """Whether answers under way keep the keys and values of the weights that made them
    (PipelineRL, arXiv 2509.19128) or have them computed anew (AReaL, arXiv 2505.24298)."""

    record_routing: bool = False
    """Whether the experts that each token visited are recorded, for replay in training."""

    record_masks: bool = False
    """Whether the tokens that top-k and top-p left are recorded, where they left some out."""

    def __post_init__(self) -> None:
        for key in ("kv_bytes", "block_tokens", "max_sequences", "draft_match_tokens"):
            value = vars(self)[key]
            if value < 1:
                raise ValueError(f"rollout engine {key}={value} must be at least 1")
        if self.max_draft_tokens < 0:
            raise ValueError(
                f"max_draft_tokens={self.max_draft_tokens} must not be negative; 0 copies nothing"
            )
        if self.forward_tokens < self.max_sequences:
            raise ValueError(
                f"forward_tokens={self.forward_tokens} is less than max_sequences="
                f"{self.max_sequences}, each of which needs one token per forward; raise it"
            )
