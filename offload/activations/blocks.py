"""MEMO's scheme (arXiv 2407.12117, section 4.1) for a decoder block given in three parts.

    blocks = BlockSwap({"host": swap}, num_blocks=32, policy=parse_policy("swap(0.4) to host"))
    y_TD = blocks.run(index, x_TD, BlockParts(pre=pre, attention=attention, post=post))

Block input and attention output always leave; of the other tensors the rows of the first alpha of
the tokens leave, and the rest is recomputed; the last blocks stay.

Guarantees, each asserted in tests/offload/activations/test_blocks.py:
- keep, recompute, selective, swap of everything and any alpha between give the same gradients, to
  the bit;
- attention is never run twice, but by `recompute`;
- the policy may change between any two forwards.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from offload.activations.engine import ActivationSwap
from offload.activations.policy import ActivationPolicy, Tier
from offload.activations.records import Kept, Packed
from offload.activations.regions import Outputs, Region, RowCheck, TokenFn, as_tuple

ROW_GRANULE = 64
"""Rows are swapped in whole multiples, where there are as many: products round the same way."""


@dataclass(frozen=True, kw_only=True)
class BlockParts:
    """A decoder block: `post(rows, x, attention(*pre(rows, x)))`.

    `pre` and `post` treat each token alone and get the rows they work on as a slice.
    """

    pre: TokenFn
    attention: Callable[..., Tensor]
    post: TokenFn
    split_post: bool = True
    """False where `post` mixes tokens, as experts with a shared capacity do: what it saves leaves
    whole."""

    def plain(self, x_TD: Tensor) -> Outputs:
        """The block, nothing swapped."""
        rows = slice(0, x_TD.shape[0])
        return self.post(rows, x_TD, self.attention(*as_tuple(self.pre(rows, x_TD))))


class BlockSwap:
    """Runs the blocks of one model under a policy. Set `policy` between steps as you like."""

    def __init__(
        self,
        swaps: Mapping[Tier, ActivationSwap],
        *,
        num_blocks: int,
        policy: ActivationPolicy | None = None,
    ) -> None:
        if not swaps:
            raise ValueError("a BlockSwap needs an ActivationSwap for at least one tier, got none")
        self._swaps = dict(swaps)
        self._num_blocks = num_blocks
        self._check = RowCheck()
        self.policy = ActivationPolicy() if policy is None else policy

    def run(self, index: int, x_TD: Tensor, parts: BlockParts) -> Outputs:
        """Output of block `index` for input [T, ...].

        Raises:
            ValueError: The policy's tier was not given.
            RuntimeError: The tier has no room, or a part is not what `BlockParts` says.
            DiskFailure: An earlier tensor could not be stored.
        """
        policy = self.policy.for_block(index, self._num_blocks)
        if not torch.is_grad_enabled() or x_TD.shape[0] == 0:
            return parts.plain(x_TD)
        if policy.kind == "recompute":
            result: Outputs = checkpoint(
                parts.plain, x_TD, use_reentrant=False, preserve_rng_state=False
            )
            return result
        swap = self._swap(self.policy)
        if policy.kind == "keep":
            # Asking for what stayed starts the return of the blocks before.
            with saved_tensors_hooks(Kept, swap.unpack):
                return parts.plain(x_TD)
        with swap.block(index):
            run = _Run(swap, policy, self._check, x_TD.shape[0])
            before = run.region("pre", parts.pre, x_TD)
            mixed = run.attend(parts.attention, before, as_tuple(before.forward([x_TD])))
            if not parts.split_post:
                with saved_tensors_hooks(run.hold, swap.unpack):
                    return parts.post(slice(0, x_TD.shape[0]), x_TD, mixed)
            return run.region("post", parts.post, x_TD, mixed).forward([x_TD, mixed])

    def _swap(self, policy: ActivationPolicy) -> ActivationSwap:
        if policy.kind != "swap":
            return next(iter(self._swaps.values()))
        if policy.tier not in self._swaps:
            raise ValueError(
                f"the policy swaps to {policy.tier}, but only {', '.join(self._swaps)} was opened; "
                "give BlockSwap a swap for it, or choose another tier"
            )
        return self._swaps[policy.tier]


class _Run:
    """One block's forward under one policy."""

    def __init__(
        self, swap: ActivationSwap, policy: ActivationPolicy, check: RowCheck, rows: int
    ) -> None:
        self._swap = swap
        self._check = check
        self._swapped = swapped_rows(rows, policy.alpha)
        self.hold: Callable[[Tensor], Packed] = Kept if policy.kind == "selective" else swap.pack

    def region(self, name: str, fn: TokenFn, *inputs: Tensor) -> Region:
        """A token-wise part of the block."""
        return Region(
            self._swap,
            fn,
            inputs,
            name=name,
            swapped_rows=self._swapped,
            hold=self.hold,
            check=self._check,
        )

    def attend(
        self, attention: Callable[..., Tensor], before: Region, inputs: tuple[Tensor, ...]
    ) -> Tensor:
        """Attention; of what it saves, the outputs of `before` are that region's."""

        def pack(tensor: Tensor) -> Packed:
            packed = before.pack_output(tensor)
            return self.hold(tensor) if packed is None else packed

        with saved_tensors_hooks(pack, self._swap.unpack):
            mixed = attention(*inputs)
        before.outputs_used()
        return mixed


def swapped_rows(rows: int, alpha: float) -> int:
    """How many of `rows` tokens are swapped: alpha of them, in whole granules where possible."""
    wanted = round(alpha * rows)
    if wanted in (0, rows) or rows < 2 * ROW_GRANULE:
        return wanted
    return min(wanted // ROW_GRANULE * ROW_GRANULE, rows)
