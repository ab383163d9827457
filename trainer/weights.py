"""The fp32 parameters that are initialised, loaded, updated and saved, however they are spread."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from parallel.apply import Spread
from parallel.shard import fsdp_modules
from trainer.model.config import Architecture
from trainer.model.decoder import Decoder
from trainer.model.stage import DecoderStages


class Weights:
    """What this rank has of a decoder's parameters and buffers, by the whole decoder's names.

    Parameters are those that the optimizer updates: the model's own, or masters of them.
    """

    def __init__(self, model: Decoder | DecoderStages, spreads: Sequence[Spread]) -> None:
        self.model = model
        self._spreads = spreads

    @property
    def architecture(self) -> Architecture:
        """Of the whole decoder."""
        return self.model.architecture

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters by name; known once the model has storage."""
        for spread in self._spreads:
            yield from spread.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """All buffers by name."""
        return self.model.named_buffers()

    def state_dict(self) -> dict[str, Any]:
        """The model's; its keys say which buffers are saved."""
        return self.model.state_dict()

    def fsdp_modules(self) -> list[FSDPModule]:
        """Every module that is sharded."""
        roots = [self.model] if isinstance(self.model, Decoder) else self.model.stages
        return [module for root in roots for module in fsdp_modules(root)]

    def publish(self) -> None:
        """Let the model compute with new values of the parameters. All ranks call it."""
        for spread in self._spreads:
            spread.publish()
