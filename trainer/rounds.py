"""Forward and backward of all rounds of a step, on one model or on the stages of a pipeline.

Guarantee, asserted in tests/invariants/test_losses.py: both add up the same losses and gradients.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from parallel.gradients import Gradients
from parallel.pipeline.run import Pipeline
from trainer.data.batch import Batch
from trainer.model.decoder import Decoder
from trainer.model.layers import LossParts
from trainer.model.packing import Sharing
from trainer.model.stage import DecoderStages


class Rounds(Protocol):
    """What trains on the rounds of a step. All ranks call each method alike."""

    def train(
        self, batches: Sequence[Batch], sharings: Sequence[Sharing], *, divisor: float
    ) -> LossParts:
        """Forward and backward of all rounds. Gradients of the losses' sum over `divisor` are added
        up; returns this rank's sums, detached, with a row of loads for every mixture layer of the
        model, zero where another rank has it."""

    def evaluate(self, batch: Batch) -> LossParts:
        """Sums of one batch that every rank has, without gradients."""


class PlainRounds:
    """Rounds one after the other on a whole model."""

    def __init__(
        self, model: Decoder, gradients: Gradients, on_round: Callable[[int], None]
    ) -> None:
        """`on_round` hears of each round as it begins, counted from 0."""
        self.model = model
        self._gradients = gradients
        self._on_round = on_round

    def train(
        self, batches: Sequence[Batch], sharings: Sequence[Sharing], *, divisor: float
    ) -> LossParts:
        found = []
        for number, (batch, sharing) in enumerate(zip(batches, sharings, strict=True)):
            self._on_round(number)
            self._gradients.start_round(last=number == len(batches) - 1)
            parts = self.forward(batch, sharing)
            ((parts.loss_sum + parts.aux_sum) / divisor).backward()
            found.append(LossParts(*(part.detach() for part in parts)))
        return LossParts(*(torch.stack(part).sum(0) for part in zip(*found, strict=True)))

    def forward(self, batch: Batch, sharing: Sharing) -> LossParts:
        """Losses of one round."""
        return self.model(batch, sharing)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> LossParts:
        return self.model(batch)


class PipelinedRounds:
    """Rounds as the microbatches of a pipeline."""

    def __init__(self, stages: DecoderStages, pipeline: Pipeline[Batch], *, compiled: bool) -> None:
        self._stages = stages
        self._pipeline = pipeline
        self._compiled = compiled

    def train(
        self, batches: Sequence[Batch], sharings: Sequence[Sharing], *, divisor: float
    ) -> LossParts:
        reports = self._pipeline.run(
            batches,
            divisor=divisor,
            arguments=[{"sharing": sharing} for sharing in sharings],
            whole_backward=self._compiled
            or self._stages.recompute
            or self._stages.swap is not None,
        )
        return self._stages.total(reports)

    def evaluate(self, batch: Batch) -> LossParts:
        return self._stages.total(self._pipeline.evaluate([batch]))
