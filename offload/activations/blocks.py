"""MEMO's scheme (arXiv 2407.12117, section 4.1) for a decoder block given in three parts.

    blocks = BlockSwap(swap, num_blocks=32, policy=ActivationPolicy(kind="swap", alpha=0.4))
    y_TD = blocks.run(index, x_TD, pre=pre, attention=attention, post=post)

Block input and attention output always leave; of the other tensors the rows of the first alpha of
the tokens leave, and the rest is recomputed; the last blocks stay.

Guarantees, each asserted in tests/offload/activations/test_blocks.py:
- keep, recompute, swap of everything and any alpha between give the same gradients, to the bit;
- attention is never run twice;
- the policy may change between any two forwards.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from offload.activations.engine import ActivationSwap
from offload.activations.policy import ActivationPolicy
from offload.activations.records import Kept, Packed
from offload.activations.regions import Outputs, Region, RowCheck, TokenFn, as_tuple

ROW_GRANULE = 64
"""Rows are swapped in whole multiples, where there are as many: products round the same way."""


class BlockSwap:
    """Runs the blocks of one model under a policy. Set `policy` between steps as you like."""

    def __init__(
        self,
        swap: ActivationSwap,
        *,
        num_blocks: int,
        policy: ActivationPolicy | None = None,
    ) -> None:
        self._swap = swap
        self._num_blocks = num_blocks
        self._check = RowCheck()
        self.policy = ActivationPolicy() if policy is None else policy

    def run(
        self,
        index: int,
        x_TD: Tensor,
        *,
        pre: TokenFn,
        attention: Callable[..., Tensor],
        post: TokenFn,
        split_post: bool = True,
    ) -> Outputs:
        """Output of block `index`: `post(rows, x, attention(*pre(rows, x)))`.

        `pre` and `post` treat each token alone and get the rows they work on as a slice. With
        `split_post` false, as for experts that share capacity, what `post` saves leaves whole.
        """
        policy = self.policy.for_block(index, self._num_blocks)
        rows = slice(0, x_TD.shape[0])
        if policy.kind == "keep" or not torch.is_grad_enabled():
            with saved_tensors_hooks(Kept, Kept.tensor):
                mixed = attention(*as_tuple(pre(rows, x_TD)))
                return post(rows, x_TD, mixed)
        hold: Callable[[Tensor], Packed] = Kept if policy.kind == "recompute" else self._swap.pack
        swapped = swapped_rows(x_TD.shape[0], policy.alpha)

        def region(name: str, fn: TokenFn, *inputs: Tensor) -> Region:
            return Region(
                self._swap,
                fn,
                inputs,
                name=name,
                swapped_rows=swapped,
                hold=hold,
                check=self._check,
            )

        before = region("pre", pre, x_TD)
        mixed = self._attend(attention, before, as_tuple(before.forward([x_TD])), hold)
        if not split_post:
            with saved_tensors_hooks(hold, self._swap.unpack):
                return post(rows, x_TD, mixed)
        return region("post", post, x_TD, mixed).forward([x_TD, mixed])

    def _attend(
        self,
        attention: Callable[..., Tensor],
        before: Region,
        inputs: tuple[Tensor, ...],
        hold: Callable[[Tensor], Packed],
    ) -> Tensor:
        def pack(tensor: Tensor) -> Packed:
            packed = before.pack_output(tensor)
            return hold(tensor) if packed is None else packed

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
