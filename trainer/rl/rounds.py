"""Forward and backward of a step's rounds where some steps learn by rewards."""

from collections.abc import Callable
from functools import partial

from parallel.gradients import Gradients
from trainer.data.batch import Batch
from trainer.model.decoder import Decoder
from trainer.model.layers import LossParts
from trainer.model.packing import Sharing
from trainer.rl.batch import PolicyBatch
from trainer.rl.judging import judge
from trainer.rl.objectives.config import ObjectiveConfig
from trainer.rounds import PlainRounds


class PolicyRounds(PlainRounds):
    """Rounds on a whole model: of samples by the objective, of documents by cross entropy."""

    def __init__(
        self,
        model: Decoder,
        gradients: Gradients,
        on_round: Callable[[int], None],
        config: ObjectiveConfig,
    ) -> None:
        super().__init__(model, gradients, on_round)
        self._config = config

    def forward(self, batch: Batch, sharing: Sharing) -> LossParts:
        if not isinstance(batch, PolicyBatch):
            return super().forward(batch, sharing)
        objective = partial(
            judge,
            batch=batch,
            counts=batch.counts,
            config=self._config,
            complete=sharing.sum_over_group,
        )
        return self.model(batch, sharing, objective)
