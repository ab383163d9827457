"""The decoder, free of any parallelism.

T tokens, D model width, V vocabulary.

Guarantees, each asserted in tests/trainer/model/test_decoder.py:
- losses are sums, so splitting sequences over calls gives the same total and the same gradients;
- a batch of padding alone gives a loss of exactly 0 and a zero gradient for every parameter;
- recomputation changes neither losses nor gradients, bitwise.
"""

from torch import Tensor

from trainer.data.batch import Batch
from trainer.model.config import Architecture
from trainer.model.layers import ALONE, DecoderLayers, LossParts, Objective, loss_parts
from trainer.model.packing import Packing, Sharing
from trainer.model.rope import rotary

__all__ = ["ALONE", "Decoder", "LossParts"]


class Decoder(DecoderLayers):
    """A causal language model. May be created on the meta device and initialised later.

    Only `forward` is a module call: under FSDP2 `logits` needs
    `register_fsdp_forward_method(model, "logits")`.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture, range(architecture.num_layers))

    def forward(
        self, batch: Batch, sharing: Sharing = ALONE, objective: Objective | None = None
    ) -> LossParts:
        """Losses of a batch, summed over the tokens that this rank holds: cross entropy, or what
        `objective` makes of the labels' log-probabilities.

        `sharing` says how a stream that several ranks hold is computed; they all call it.
        """
        x_TD, stats = self.mixed(self.embedded(batch.tokens_T), batch, sharing)
        if objective is None:
            return loss_parts(self.loss_sum(x_TD, batch.labels_T), stats)
        loss_sum, figures = self.judged(x_TD, batch.labels_T, objective)
        return loss_parts(loss_sum, stats, figures)

    def logits(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        document_ends: tuple[int, ...],
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Scores of the next token: [T, V], or [1, V] of the last token."""
        hidden_TD = self.hidden(tokens_T, positions_T, document_ends)
        return self.vocabulary.logits(
            hidden_TD[-1:] if last_only else hidden_TD, self.output_weight_VD
        )

    def hidden(
        self, tokens_T: Tensor, positions_T: Tensor, document_ends: tuple[int, ...]
    ) -> Tensor:
        """[T, D]: what the output projection is given."""
        angles = rotary(self.architecture, positions_T, document_ends)
        packing = Packing(document_ends=document_ends)
        x_TD = self.embedded(tokens_T)
        for block in self.layers:
            x_TD, _ = block(x_TD, angles, packing)
        assert self.norm is not None
        return self.norm(x_TD)
