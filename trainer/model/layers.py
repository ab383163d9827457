"""What a decoder and each of its pipeline stages have in common. Free of any parallelism.

T tokens, D model width, V vocabulary, E experts.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from offload.activations.blocks import BlockSwap
from parallel.branched import branched
from trainer.data.batch import Batch
from trainer.model.blocks import DecoderBlock, RmsNorm
from trainer.model.config import Architecture
from trainer.model.experts import Experts
from trainer.model.loss import Vocabulary, WholeVocabulary
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

    dropped: Tensor
    """fp32 scalar, detached: of these assignments, those beyond the experts' capacity."""

    figures: Tensor
    """fp32 [F], detached: sums that an objective reports; [0] for cross entropy."""


Objective: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Log-probabilities [T] of the labels, 0 where there is none, to a loss sum and figures."""


class Blocks(nn.Module):
    """Blocks by their number in the whole decoder, ascending; iterates over the blocks."""

    def __init__(self, blocks: dict[int, DecoderBlock]) -> None:
        super().__init__()
        self.numbers = tuple(sorted(blocks))
        for number in self.numbers:
            self.add_module(str(number), blocks[number])

    def __iter__(self) -> Iterator[DecoderBlock]:
        blocks = (self.get_submodule(str(number)) for number in self.numbers)
        return (block for block in blocks if isinstance(block, DecoderBlock))

    def __getitem__(self, place: int) -> DecoderBlock:
        return list(self)[place]

    def __len__(self) -> int:
        return len(self.numbers)


class DecoderLayers(nn.Module):
    """Some layers of a decoder; the first ones come with the embedding, the last ones with norm and
    output projection. Names are those of the whole decoder, whatever the part.

    May be created on the meta device. Under FSDP2 what is not a block must stay in the root's own
    group, because the projection's weight is used directly.
    """

    gradient_watch: Callable[[Tensor], None] | None = None
    """Is shown the gradient of what the first of these layers is given."""

    def __init__(self, architecture: Architecture, layers: range) -> None:
        super().__init__()
        a = architecture
        self.architecture = architecture
        self.recompute = False
        """Whether blocks are recomputed in backward instead of kept; may change every step."""
        self.swap: BlockSwap | None = None
        """Decides what of a block is kept otherwise; may change every step."""
        self.loss_chunk_tokens = 1024
        """Tokens whose logits are in memory at a time."""
        self.vocabulary: Vocabulary = WholeVocabulary()
        """How hidden states meet the output projection."""
        first, last = layers.start == 0, layers.stop == a.num_layers
        self.embed_tokens = nn.Embedding(a.vocab_size, a.hidden_size) if first else None
        self.layers = Blocks({i: DecoderBlock(a, i) for i in layers})
        self.norm = RmsNorm(a.hidden_size, a.rms_norm_eps) if last else None
        # Sharing one parameter between two modules does not survive `to_empty`; a tied model
        # therefore has no second module.
        projects = last and not a.tie_embeddings
        self.lm_head = nn.Linear(a.hidden_size, a.vocab_size, bias=False) if projects else None

    @property
    def mixtures(self) -> list[MoeFeedForward]:
        """The mixture-of-experts layers, in order."""
        return [b.mlp for b in self.layers if isinstance(b.mlp, MoeFeedForward)]

    @property
    def experts(self) -> list[Experts]:
        """The stacked experts of every mixture layer."""
        return [mixture.experts for mixture in self.mixtures]

    @property
    def output_weight_VD(self) -> Tensor:
        """The output projection of the last layers, which is the embedding where they are tied."""
        projection = self.embed_tokens if self.lm_head is None else self.lm_head
        assert projection is not None, "only the last layers have an output projection"
        return projection.weight

    def embedded(self, tokens_T: Tensor) -> Tensor:
        """[T, D]. Raises ValueError for layers that are not the first."""
        if self.embed_tokens is None:
            raise ValueError("only the first stage takes tokens; give this one hidden states")
        return self.embed_tokens(tokens_T)

    def mixed(self, x_TD: Tensor, batch: Batch, sharing: Sharing) -> tuple[Tensor, list[MoeStats]]:
        """The residual stream after these layers, and their routers' statistics."""
        has_experts = self.architecture.moe is not None
        packing = Packing(
            document_ends=batch.document_ends,
            attend=sharing.attend
            if batch.rows_E is None
            else branched(sharing.attend, batch.rows_E, len(batch.tokens_T)),
            sequences=sequence_weights(batch, sharing.sum_over_group) if has_experts else None,
        )
        angles = rotary(self.architecture, batch.positions_T, batch.document_ends, batch.stretches)
        if self.gradient_watch is not None and x_TD.requires_grad:
            x_TD.register_hook(self.gradient_watch)
        stats: list[MoeStats] = []
        for number, block in zip(self.layers.numbers, self.layers, strict=True):
            if batch.experts_TLk is not None and self.architecture.is_moe_layer(number):
                packing = replace(packing, experts_Tk=batch.experts_TLk[:, len(stats)])
            x_TD, block_stats = self._run(number, block, x_TD, angles, packing)
            if block_stats is not None:
                stats.append(block_stats)
        return x_TD, stats

    def loss_sum(self, x_TD: Tensor, labels_T: Tensor) -> Tensor:
        """Cross entropy summed over targets, fp32. For the last layers."""
        assert self.norm is not None
        return self.vocabulary.loss_sum(
            self.norm(x_TD), self.output_weight_VD, labels_T, self.loss_chunk_tokens
        )

    def judged(self, x_TD: Tensor, labels_T: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """What `objective` makes of the labels' log-probabilities. For the last layers."""
        assert self.norm is not None
        return objective(
            self.vocabulary.log_probs(
                self.norm(x_TD), self.output_weight_VD, labels_T, self.loss_chunk_tokens
            )
        )

    def _run(
        self, number: int, block: nn.Module, x_TD: Tensor, angles: Rotary, packing: Packing
    ) -> tuple[Tensor, MoeStats | None]:
        if not torch.is_grad_enabled():
            return block(x_TD, angles, packing)
        if self.swap is not None:
            return block(x_TD, angles, packing, run=partial(self.swap.run, number))
        if self.recompute:
            # Blocks draw no random numbers, so there is no generator state to restore.
            return checkpoint(
                block, x_TD, angles, packing, use_reentrant=False, preserve_rng_state=False
            )
        return block(x_TD, angles, packing)

    @torch.no_grad()
    def update_expert_bias(self, expert_load: Tensor, rate: float) -> None:
        """Raise the selection bias of underloaded experts by `rate`, lower that of overloaded ones.

        `expert_load` is the step's, summed over all ranks: [mixture layers of these, E]. Every rank
        calls it with the same numbers. The sign rule of arXiv 2408.15664, algorithm 1.
        """
        for mixture, load_E in zip(self.mixtures, expert_load, strict=True):
            load_E = load_E[: mixture.experts.num_experts]
            step_E = rate * torch.sign(load_E.mean() - load_E)
            mixture.gate.expert_bias += step_E.to(mixture.gate.expert_bias.device)


def loss_parts(loss_sum: Tensor, stats: list[MoeStats], figures: Tensor | None = None) -> LossParts:
    """The sums, from a loss, the statistics of the layers and the figures of an objective."""
    figures = loss_sum.new_zeros(0) if figures is None else figures
    if not stats:
        zero = torch.zeros_like(loss_sum)
        return LossParts(loss_sum, zero, loss_sum.new_zeros(0, 0), zero.detach(), figures)
    return LossParts(
        loss_sum,
        torch.stack([s.aux for s in stats]).sum(),
        torch.stack([s.load_E for s in stats]),
        torch.stack([s.dropped for s in stats]).sum(),
        figures,
    )
