"""What a pipeline needs of the modules that are its stages, and of their gradients."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from parallel.gradients import Gradients


class StageOutput(NamedTuple):
    """What `stage(hidden, batch)` returns; `hidden` is None on the first stage."""

    hidden: Tensor | None
    """What the next stage is given; None on the last one."""

    loss: Tensor | None
    """Scalar that this stage adds to the loss of the microbatch; None adds nothing."""

    report: Any = None
    """Whatever the caller of `Pipeline.run` wants to know, detached."""


class StagedGradients:
    """The gradients of all stages of one rank, as `parallel.gradients.Gradients`.

    Each stage has its own, since stages reach their last backward at different times. Exchanges of
    one stage are over before those of the next begin, so that their order is the same everywhere.
    """

    def __init__(self, gradients: Sequence[Gradients]) -> None:
        self._gradients = list(gradients)
        self._exchanging: list[Gradients] = []

    def start_backward(self, stage: int, last: bool) -> None:
        """Before each backward of this rank's stage number `stage`, `last` on its final one."""
        if last:
            self._finish_exchanges()
            self._exchanging = [self._gradients[stage]]
        self._gradients[stage].start_round(last=last)

    def start_round(self, *, last: bool) -> None:
        """Before a round without a pipeline, as `Gradients` has it."""
        for gradients in self._gradients:
            gradients.start_round(last=last)
        self._exchanging = list(self._gradients) if last else []

    def finish(self) -> None:
        """After the last backward of a step; returns when all sums are there."""
        self._finish_exchanges()

    def squared_norm(self) -> Tensor:
        """Sum of squares over all stages of this rank, 0-dim fp32."""
        return torch.stack([gradients.squared_norm() for gradients in self._gradients]).sum()

    def zero(self) -> None:
        """Forget all gradients."""
        for gradients in self._gradients:
            gradients.zero()

    def _finish_exchanges(self) -> None:
        for gradients in self._exchanging:
            gradients.finish()
        self._exchanging = []


class HeldSync:
    """Keeps an FSDP2 stage whole and its gradients unreduced until the last backward of a step.

    Needed where backward is split: FSDP2 frees weights and reduces gradients when the gradient of
    a module's input is there, and the gradients of its weights come later.
    """

    def __init__(self, stage: nn.Module) -> None:
        self._modules = [m for m in stage.modules() if isinstance(m, FSDPModule)]

    @property
    def sharded(self) -> bool:
        """Whether the stage is sharded at all."""
        return bool(self._modules)

    def hold(self) -> None:
        """At the start of a step."""
        self._set(False)

    def release(self) -> None:
        """Before the last backward, which then must not be split."""
        self._set(True)

    def gather(self) -> None:
        """Before gradients of weights: a forward in between may have freed the weights."""
        for module in self._modules:
            module.unshard()

    def _set(self, last: bool) -> None:
        for module in self._modules:
            module.set_is_last_backward(last)
            module.set_requires_gradient_sync(last, recurse=False)
            module.set_reshard_after_backward(last, recurse=False)
