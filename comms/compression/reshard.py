"""Compression state of all ranks, cut anew for another number of ranks or other buckets.

Guarantees, each asserted in tests/comms/compression/test_reshard.py:
- the sum over ranks of what was not sent, of momentum and of estimates stays the same;
- where only the ranks change, everything that all ranks hold alike is kept;
- what cannot be kept is dropped with a message, and tensors that do not fit are refused.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from comms.compression.exchange import STEPS

logger = logging.getLogger("braid")

_SUMMED = ("residual", "velocity", "estimate")
"""What ranks hold parts of: only its sum over the ranks matters."""

_COMMON = ("estimate_sum", "dense_velocity", "factors")
"""What all ranks hold alike."""

_CUT_LIKE_GRADIENTS = ("residual", "velocity", "estimate", "estimate_sum")


def reshard(
    states: Sequence[Mapping[str, Tensor]], sizes: Mapping[str, int], ranks: int
) -> list[dict[str, Tensor]]:
    """States of `ranks` ranks whose keys have `sizes`, from those of ranks that held the same
    gradients, perhaps cut into other keys; both in the order in which keys were made.

    Raises ValueError where the elements are not the same in number.
    """
    old_sizes = _sizes(states[0])
    if sum(old_sizes.values()) != sum(sizes.values()):
        raise ValueError(
            f"The saved compression state covers {sum(old_sizes.values())} gradient elements and "
            f"the model has {sum(sizes.values())}: start without it (its sums are lost)."
        )
    merged = _merged(states, old_sizes)
    same = dict(old_sizes) == dict(sizes)
    found: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    names = sorted({path.rsplit("/", 1)[1] for path in merged} - {STEPS})
    for name in names:
        if same:
            cut = {k: merged[f"{k}/{name}"] for k in sizes if f"{k}/{name}" in merged}
        elif name in _CUT_LIKE_GRADIENTS:
            cut = _recut(merged, name, old_sizes, sizes)
        else:
            logger.warning("compression state %r dropped: gradients are cut differently", name)
            continue
        share = 1 / ranks if name in _SUMMED else 1.0
        for state in found:
            state |= {f"{key}/{name}": value * share for key, value in cut.items()}
    steps = max(int(state[f"{key}/{STEPS}"]) for state in states for key in old_sizes)
    for state in found:
        state |= {f"{key}/{STEPS}": torch.tensor(steps) for key in sizes}
    return found


def _sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Elements of each key's gradient; keys that hold none of them are left out."""
    found: dict[str, int] = {}
    for path, value in state.items():
        key, name = path.rsplit("/", 1)
        if name in _CUT_LIKE_GRADIENTS:
            found[key] = value.numel()
    return found


def _merged(states: Sequence[Mapping[str, Tensor]], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Sums over the ranks, or what they hold alike."""
    found: dict[str, Tensor] = {}
    for key, size in sizes.items():
        for name in _SUMMED:
            parts = [s[f"{key}/{name}"] for s in states if f"{key}/{name}" in s]
            if parts:
                found[f"{key}/{name}"] = torch.stack(parts).sum(0)
        for name in _COMMON:
            if f"{key}/{name}" in states[0]:
                found[f"{key}/{name}"] = states[0][f"{key}/{name}"]
        owned = [s[f"{key}/sum_residual"] for s in states if f"{key}/sum_residual" in s]
        if owned:
            unsent = torch.cat(owned)[:size]
            found[f"{key}/residual"] = found.get(f"{key}/residual", 0) + unsent
    return found


def _recut(
    merged: Mapping[str, Tensor],
    name: str,
    old_sizes: Mapping[str, int],
    sizes: Mapping[str, int],
) -> dict[str, Tensor]:
    """One kind of state, joined and cut at other places. Where only some keys have it, the others
    have zeros."""
    parts = [merged.get(f"{key}/{name}", torch.zeros(size)) for key, size in old_sizes.items()]
    cut = torch.cat(parts).split(list(sizes.values()))
    return dict(zip(sizes, cut, strict=True))
