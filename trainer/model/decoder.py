"""The decoder, free of any parallelism.

T tokens, D model width, V vocabulary, E experts.

Guarantees, each asserted in tests/trainer/model/test_decoder.py:
- losses are sums, so splitting sequences over calls gives the same total and the same gradients;
- a batch of padding alone gives a loss of exactly 0 and a zero gradient for every parameter;
- recomputation changes neither losses nor gradients, bitwise.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.data.batch import Batch
from trainer.model.blocks import DecoderBlock, RmsNorm
from trainer.model.cache import KvCache
from trainer.model.config import Architecture
from trainer.model.experts import Experts
from trainer.model.loss import token_loss_sum
from trainer.model.moe import MoeFeedForward, MoeStats
from trainer.model.packing import Packing, Sharing, sequence_weights
from trainer.model.rope import Rotary, rotary

ALONE = Sharing()
"""One rank holds the whole stream."""


class LossParts(NamedTuple):
    """Sums over a batch; divide their total by the step's global number of targets."""

    loss_sum: Tensor
    """fp32 scalar: cross entropy summed over targets."""

    aux_sum: Tensor
    """fp32 scalar: weighted router losses, summed over layers and, times targets, sequences."""

    expert_load: Tensor
    """fp32 [mixture layers, E], detached: assignments of real tokens; [0, 0] without experts."""


class Decoder(nn.Module):
    """A causal language model. May be created on the meta device and initialised later.

    Only `forward` is a module call. Under FSDP2 the embedding, the final norm and the output
    projection must stay in the root's own group, because `forward` uses the projection's weight
    directly; `logits` then needs `register_fsdp_forward_method(model, "logits")`.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.architecture = architecture
        self.recompute = False
        """Whether blocks are recomputed in backward instead of kept; may change every step."""
        self.loss_chunk_tokens = 1024
        """Tokens whose logits are in memory at a time."""
        self.embed_tokens = nn.Embedding(a.vocab_size, a.hidden_size)
        self.layers = nn.ModuleList(DecoderBlock(a, i) for i in range(a.num_layers))
        self.norm = RmsNorm(a.hidden_size, a.rms_norm_eps)
        # Sharing one parameter between two modules does not survive `to_empty`; a tied model
        # therefore has no second module.
        self.lm_head = (
            None if a.tie_embeddings else nn.Linear(a.hidden_size, a.vocab_size, bias=False)
        )

    @property
    def output_weight_VD(self) -> Tensor:
        """The output projection, which is the embedding where they are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def experts(self) -> list[Experts]:
        """The stacked experts of every mixture layer."""
        return [b.mlp.experts for b in self.layers if isinstance(b.mlp, MoeFeedForward)]

    def forward(self, batch: Batch, sharing: Sharing = ALONE) -> LossParts:
        """Losses of a batch, summed over the tokens that this rank holds.

        `sharing` says how a stream that several ranks hold is computed; they all call it.
        """
        has_experts = self.architecture.moe is not None
        packing = Packing(
            document_ends=batch.document_ends,
            attend=sharing.attend,
            sequences=sequence_weights(batch, sharing.sum_over_group) if has_experts else None,
        )
        angles = rotary(self.architecture, batch.positions_T, batch.document_ends, batch.stretches)
        x_TD, stats = self.embed_tokens(batch.tokens_T), []
        for block in self.layers:
            x_TD, block_stats = self._run(block, x_TD, angles, packing)
            if block_stats is not None:
                stats.append(block_stats)
        loss_sum = token_loss_sum(
            self.norm(x_TD), self.output_weight_VD, batch.labels_T, self.loss_chunk_tokens
        )
        if not stats:
            return LossParts(loss_sum, torch.zeros_like(loss_sum), loss_sum.new_zeros(0, 0))
        return LossParts(
            loss_sum,
            torch.stack([s.aux for s in stats]).sum(),
            torch.stack([s.load_E for s in stats]),
        )

    def _run(
        self, block: nn.Module, x_TD: Tensor, angles: Rotary, packing: Packing
    ) -> tuple[Tensor, MoeStats | None]:
        if self.recompute and torch.is_grad_enabled():
            # Blocks draw no random numbers, so there is no generator state to restore.
            return checkpoint(
                block, x_TD, angles, packing, use_reentrant=False, preserve_rng_state=False
            )
        return block(x_TD, angles, packing)

    def logits(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        document_ends: tuple[int, ...],
        cache: KvCache | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Scores of the next token: [T, V], or [1, V] of the last token.

        With a cache the tokens continue the one document that it holds, and are added to it.
        """
        angles = rotary(self.architecture, positions_T, document_ends)
        packing = Packing(document_ends=document_ends)
        x_TD = self.embed_tokens(tokens_T)
        for i, block in enumerate(self.layers):
            x_TD, _ = block(x_TD, angles, packing, None if cache is None else cache.layers[i])
        hidden_TD = self.norm(x_TD[-1:] if last_only else x_TD)
        return F.linear(hidden_TD, self.output_weight_VD)

    @torch.no_grad()
    def update_expert_bias(self, expert_load: Tensor, rate: float) -> None:
        """Raise the selection bias of underloaded experts by `rate`, lower that of overloaded ones.

        `expert_load` is the step's, summed over all ranks: [mixture layers, E]. Every rank calls it
        with the same numbers. The sign rule of arXiv 2408.15664, algorithm 1.
        """
        routers = [b.mlp.gate for b in self.layers if isinstance(b.mlp, MoeFeedForward)]
        for router, load_E in zip(routers, expert_load, strict=True):
            step_E = rate * torch.sign(load_E.mean() - load_E)
            router.expert_bias += step_E.to(router.expert_bias.device)
