"""The part of a decoder that pipeline stages hold, under the names of the whole decoder.

T tokens, D model width, V vocabulary, E experts.

Guarantees, each asserted in tests/trainer/model/test_stage.py:
- the stages of a decoder, run one after the other, give its losses and gradients, bitwise;
- every parameter and buffer has the name it has in the whole decoder and is on one stage only, so
  that weights and checkpoints fit any number of stages.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from offload.activations.blocks import BlockSwap
from parallel.pipeline.stages import StageOutput
from trainer.data.batch import Batch
from trainer.model.config import Architecture
from trainer.model.experts import Experts
from trainer.model.layers import ALONE, Blocks, DecoderLayers, LossParts, loss_parts
from trainer.model.packing import Sharing


class DecoderStage(DecoderLayers):
    """Some layers of a decoder; the first stage also embeds, the last one computes the loss.

    May be created on the meta device. Under FSDP2 it is a root of its own. Raises ValueError where
    input and output embeddings are tied.
    """

    def __init__(self, architecture: Architecture, layers: range) -> None:
        if architecture.tie_embeddings and len(layers) < architecture.num_layers:
            raise ValueError(
                "the embedding and the output projection are on different pipeline stages, but "
                "model.tie_embeddings makes them one; set it to false, or parallel.pp to 1"
            )
        super().__init__(architecture, layers)

    def forward(
        self, hidden_TD: Tensor | None, batch: Batch, sharing: Sharing = ALONE
    ) -> StageOutput:
        """The stage's part of a batch; `hidden_TD` is None for the first stage.

        The report is the stage's `LossParts`, detached, with one row of loads per mixture layer.
        """
        x_TD = self.embedded(batch.tokens_T) if hidden_TD is None else hidden_TD
        x_TD, stats = self.mixed(x_TD, batch, sharing)
        last = self.norm is not None
        zero = torch.zeros((), dtype=torch.float32, device=x_TD.device)
        parts = loss_parts(self.loss_sum(x_TD, batch.labels_T) if last else zero, stats)
        return StageOutput(
            hidden=None if last else x_TD,
            loss=parts.loss_sum + parts.aux_sum if last or stats else None,
            report=LossParts(*(part.detach() for part in parts)),
        )


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
        self.layers = Blocks(blocks)
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
    def swap(self) -> BlockSwap | None:
        """Decides what of a block is kept otherwise; may change every step."""
        return self.stages[0].swap

    @swap.setter
    def swap(self, wanted: BlockSwap | None) -> None:
        for stage in self.stages:
            stage.swap = wanted

    @property
    def gradient_watch(self) -> Callable[[Tensor], None] | None:
        """Is shown the gradient of what each stage is given."""
        return self.stages[0].gradient_watch

    @gradient_watch.setter
    def gradient_watch(self, wanted: Callable[[Tensor], None] | None) -> None:
        for stage in self.stages:
            stage.gradient_watch = wanted

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
            torch.stack([part.dropped for part in parts]).sum(),
        )

    @torch.no_grad()
    def update_expert_bias(self, expert_load: Tensor, rate: float) -> None:
        """`Decoder.update_expert_bias` for the layers of this rank; `expert_load` is the whole
        decoder's, summed over all ranks."""
        for stage, rows in zip(self.stages, self._mixture_rows(), strict=True):
            stage.update_expert_bias(expert_load[rows], rate)

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
