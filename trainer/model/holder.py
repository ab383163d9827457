"""What filling, saving and updating need of whatever holds parameters."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from trainer.model.config import Architecture


class HasParameters(Protocol):
    """A module, or several of which a rank has parts."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters by name."""

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """All buffers by name."""

    def state_dict(self) -> dict[str, Any]:
        """What is saved; its keys say which buffers are."""


class HasDecoder(HasParameters, Protocol):
    """The parameters of a decoder, or of some layers of one, by the whole decoder's names."""

    @property
    def architecture(self) -> Architecture:
        """Of the whole decoder."""
