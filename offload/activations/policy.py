"""What happens to the activations of one step's blocks. Pure data, neither torch nor ray.

Guarantees, each asserted in tests/offload/activations/test_policy.py:
- a policy's text reads back as the same policy;
- the last blocks are kept whatever the policy, because backward wants them at once;
- fractions outside [0, 1] and tiers without a swap are refused.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["keep", "recompute", "selective", "swap"]
Tier = Literal["host", "disk"]

KEPT_BLOCKS = 2
"""MEMO (arXiv 2407.12117, section 4.1) keeps the last two layers."""


@dataclass(frozen=True, kw_only=True)
class ActivationPolicy:
    """Fields that may change every step. Gradients do not depend on them, to the bit."""

    kind: Kind = "keep"
    """`keep`: everything stays. `recompute`: a block's input stays, and the block is run again in
    backward, attention too. `selective`: input and attention output stay, the other token-wise
    tensors are recomputed. `swap`: input and attention output leave for `tier`, and so do the
    others of a share `alpha` of the tokens; those of the rest are recomputed."""

    alpha: float = 0.0
    """Share of the tokens whose other tensors are swapped; 1 recomputes nothing."""

    tier: Tier = "host"
    """Where they go. `host` needs a device."""

    kept_blocks: int = KEPT_BLOCKS
    """Blocks at the end whose activations stay."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be between 0 and 1, got {self.alpha}")
        if self.kind != "swap" and self.alpha:
            raise ValueError(f"alpha belongs to swap, got {self.alpha} for {self.kind}; drop it")
        if self.kept_blocks < 0:
            raise ValueError(f"kept_blocks must not be negative, got {self.kept_blocks}")

    def for_block(self, index: int, blocks: int) -> "ActivationPolicy":
        """What holds for block `index` of `blocks`: this policy, or `keep` at the end."""
        if self.kind == "swap" and index >= blocks - self.kept_blocks:
            return KEEP
        return self

    def __str__(self) -> str:
        if self.kind != "swap":
            return self.kind
        return f"swap({self.alpha:g}) to {self.tier}"


KEEP = ActivationPolicy()
RECOMPUTE = ActivationPolicy(kind="recompute")
SELECTIVE = ActivationPolicy(kind="selective")


def parse_policy(text: str, *, kept_blocks: int = KEPT_BLOCKS) -> ActivationPolicy:
    """The policy that a text names: `keep`, `recompute`, `selective`, `swap(ALPHA) to host` or
    `swap(ALPHA) to disk`.

    Raises:
        ValueError: The text is none of these.
    """
    if text == "keep":
        return ActivationPolicy(kept_blocks=kept_blocks)
    if text == "recompute":
        return ActivationPolicy(kind="recompute", kept_blocks=kept_blocks)
    if text == "selective":
        return ActivationPolicy(kind="selective", kept_blocks=kept_blocks)
    head, _, tier = text.partition(") to ")
    number = head.removeprefix("swap(")
    try:
        alpha = float(number)
    except ValueError as error:
        raise ValueError(_unknown(text)) from error
    if number == head:
        raise ValueError(_unknown(text))
    if tier == "host":
        return ActivationPolicy(kind="swap", alpha=alpha, tier="host", kept_blocks=kept_blocks)
    if tier == "disk":
        return ActivationPolicy(kind="swap", alpha=alpha, tier="disk", kept_blocks=kept_blocks)
    raise ValueError(_unknown(text))


def _unknown(text: str) -> str:
    return (
        f"no activation policy is called {text!r}; "
        "write keep, recompute, selective, swap(ALPHA) to host or swap(ALPHA) to disk"
    )
