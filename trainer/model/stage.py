"""The part of a decoder that pipeline stages hold, under the names of the whole decoder.

T tokens, D model width, V vocabulary, E experts.

Guarantees, each asserted in tests/trainer/model/test_stage.py:
- the stages of a decoder, run one after the other, give its losses and gradients, bitwise;
- every parameter and buffer has the name it has in the whole decoder and is on one stage only, so
  that weights and checkpoints fit any number of stages.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parallel.pipeline.stages import StageOutput
from trainer.data.batch import Batch
from trainer.model.blocks import DecoderBlock, RmsNorm
from trainer.model.config import Architecture
from trainer.model.decoder import ALONE, LossParts
from trainer.model.experts import Experts
from trainer.model.loss import Vocabulary, WholeVocabulary
from trainer.model.moe import MoeFeedForward, MoeStats
from trainer.model.packing import Packing, Sharing, sequence_weights
from trainer.model.rope import Rotary, rotary


class StageLayers(nn.Module):
    """Blocks by their number in the whole decoder, ascending; iterates over the blocks."""

    def __init__(self, blocks: dict[int, DecoderBlock]) -> None:
        super().__init__()
        self.numbers = tuple(sorted(blocks))
        for number in self.numbers:
            self.add_module(str(number), blocks[number])

    def __iter__(self) -> Iterator[DecoderBlock]:
        blocks = (self.get_submodule(str(number)) for number in self.numbers)
        return (block for block in blocks if isinstance(block, DecoderBlock))

    def __len__(self) -> int:
        return len(self.numbers)


class DecoderStage(nn.Module):
    """Some layers of a decoder; the first stage also embeds, the last one computes the loss.

    May be created on the meta device. Under FSDP2 it is a root of its own, and what is not a block
    must stay in its own group. Raises ValueError where input and output embeddings are tied.
    """

    def __init__(self, architecture: Architecture, layers: range) -> None:
        super().__init__()
        a = architecture
        if a.tie_embeddings and len(layers) < a.num_layers:
            raise ValueError(
                "the embedding and the output projection are on different pipeline stages, but "
                "model.tie_embeddings makes them one; set it to false, or parallel.pp to 1"
            )
        self.architecture = architecture
        self.recompute = False
        """Whether blocks are recomputed in backward instead of kept; may change every step."""
        self.loss_chunk_tokens = 1024
        """Tokens whose logits are in memory at a time."""
        self.vocabulary: Vocabulary = WholeVocabulary()
        first, last = layers.start == 0, layers.stop == a.num_layers
        self.embed_tokens = nn.Embedding(a.vocab_size, a.hidden_size) if first else None
        self.layers = StageLayers({i: DecoderBlock(a, i) for i in layers})
        self.norm = RmsNorm(a.hidden_size, a.rms_norm_eps) if last else None
        projects = last and not a.tie_embeddings
        self.lm_head = nn.Linear(a.hidden_size, a.vocab_size, bias=False) if projects else None

    @property
    def experts(self) -> list[Experts]:
        """The stacked experts of every mixture layer of this stage."""
        return [b.mlp.experts for b in self.layers if isinstance(b.mlp, MoeFeedForward)]

    def forward(
        self, hidden_TD: Tensor | None, batch: Batch, sharing: Sharing = ALONE
    ) -> StageOutput:
        """The stage's part of a batch; `hidden_TD` is None for the first stage.

        The report is the stage's `LossParts`, detached, with one row of loads per mixture layer.
        """
        x_TD = self._embedded(batch.tokens_T) if hidden_TD is None else hidden_TD
        packing = Packing(
            document_ends=batch.document_ends,
            attend=sharing.attend,
            sequences=sequence_weights(batch, sharing.sum_over_group)
            if self.architecture.moe is not None
            else None,
        )
        angles = rotary(self.architecture, batch.positions_T, batch.document_ends, batch.stretches)
        stats: list[MoeStats] = []
        for block in self.layers:
            x_TD, block_stats = self._run(block, x_TD, angles, packing)
            if block_stats is not None:
                stats.append(block_stats)
        loss_sum = self._loss_sum(x_TD, batch.labels_T)
        return _output(x_TD, loss_sum, stats)

    def _run(
        self, block: nn.Module, x_TD: Tensor, angles: Rotary, packing: Packing
    ) -> tuple[Tensor, MoeStats | None]:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(
                block, x_TD, angles, packing, use_reentrant=False, preserve_rng_state=False
            )
        return block(x_TD, angles, packing)

    def _embedded(self, tokens_T: Tensor) -> Tensor:
        if self.embed_tokens is None:
            raise ValueError("only the first stage takes tokens; give this one hidden states")
        return self.embed_tokens(tokens_T)

    def _loss_sum(self, x_TD: Tensor, labels_T: Tensor) -> Tensor | None:
        if self.norm is None:
            return None
        projection = self.embed_tokens if self.lm_head is None else self.lm_head
        assert projection is not None
        return self.vocabulary.loss_sum(
            self.norm(x_TD), projection.weight, labels_T, self.loss_chunk_tokens
        )


def _output(x_TD: Tensor, loss_sum: Tensor | None, stats: Sequence[MoeStats]) -> StageOutput:
    zero = torch.zeros((), dtype=torch.float32, device=x_TD.device)
    aux_sum = torch.stack([s.aux for s in stats]).sum() if stats else None
    report = LossParts(
        zero if loss_sum is None else loss_sum.detach(),
        zero if aux_sum is None else aux_sum.detach(),
        torch.stack([s.load_E for s in stats]) if stats else zero.new_zeros(0, 0),
    )
    terms = [term for term in (loss_sum, aux_sum) if term is not None]
    loss = torch.stack(terms).sum() if len(terms) == 2 else next(iter(terms), None)
    return StageOutput(hidden=x_TD if loss_sum is None else None, loss=loss, report=report)


class DecoderStages(nn.Module):
    """All stages of one rank as one module with the whole decoder's names: what is initialised,
    saved, loaded and updated. Created after the stages were parallelized; it is never called."""

    def __init__(self, stages: Sequence[DecoderStage]) -> None:
        super().__init__()
        self.stages = tuple(stages)
        """In a tuple, so that each parameter has one name."""
        self.architecture = stages[0].architecture
        blocks = {n: b for s in stages for n, b in zip(s.layers.numbers, s.layers, strict=True)}
        self.embed_tokens = next((s.embed_tokens for s in stages if s.embed_tokens), None)
        self.layers = StageLayers(blocks)
        self.norm = next((s.norm for s in stages if s.norm), None)
        self.lm_head = next((s.lm_head for s in stages if s.lm_head), None)

    @property
    def recompute(self) -> bool:
        """Whether blocks are recomputed in backward instead of kept; may change every step."""
        return self.stages[0].recompute

    @recompute.setter
    def recompute(self, wanted: bool) -> None:
        for stage in self.stages:
            stage.recompute = wanted

    @property
    def experts(self) -> list[Experts]:
        """The stacked experts of every mixture layer of this rank."""
        return [experts for stage in self.stages for experts in stage.experts]

    def total(self, reports: Sequence[Sequence[LossParts]]) -> LossParts:
        """Sums over the reports of `Pipeline.run`. Loads have a row for every mixture layer of the
        whole decoder, zero where this rank has not got it, so that ranks can be summed."""
        parts = [part for stage in reports for part in stage]
        a, device = self.architecture, parts[0].loss_sum.device
        experts = 0 if a.moe is None else a.moe.num_experts
        load = torch.zeros(len(mixture_layers(a)), experts, device=device)
        for rows, stage_reports in zip(self._mixture_rows(), reports, strict=True):
            for row, loads_E in zip(rows, _summed_loads(stage_reports), strict=True):
                load[row] = loads_E
        return LossParts(
            torch.stack([part.loss_sum for part in parts]).sum(),
            torch.stack([part.aux_sum for part in parts]).sum(),
            load if experts else load.new_zeros(0, 0),
        )

    @torch.no_grad()
    def update_expert_bias(self, expert_load: Tensor, rate: float) -> None:
        """`Decoder.update_expert_bias` for the layers of this rank; `expert_load` is the whole
        decoder's, summed over all ranks."""
        rows = [row for rows in self._mixture_rows() for row in rows]
        routers = [
            block.mlp.gate
            for stage in self.stages
            for block in stage.layers
            if isinstance(block.mlp, MoeFeedForward)
        ]
        for router, row in zip(routers, rows, strict=True):
            load_E = expert_load[row]
            step_E = rate * torch.sign(load_E.mean() - load_E)
            router.expert_bias += step_E.to(router.expert_bias.device)

    def _mixture_rows(self) -> list[list[int]]:
        """Per stage, the places of its mixture layers among all of the decoder."""
        mixtures = mixture_layers(self.architecture)
        return [[mixtures.index(n) for n in s.layers.numbers if n in mixtures] for s in self.stages]


def _summed_loads(reports: Sequence[LossParts]) -> Tensor:
    return torch.stack([report.expert_load for report in reports]).sum(dim=0)


def mixture_layers(architecture: Architecture) -> list[int]:
    """The numbers of all layers with experts."""
    a = architecture
    return [n for n in range(a.num_layers) if a.moe is not None and a.is_moe_layer(n)]
