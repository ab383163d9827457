"""Gradients of parameters in host memory, as fp32 accumulators that the update reads.

With `stream` a gradient is taken the moment backward has finished it: the first one of a step
becomes the accumulator, later ones are added, and `.grad` is empty again. Without it gradients
stay in `.grad` (buckets or a gradient scaler own them) and are looked up when the step begins.

Guarantees, each asserted in tests/offload/test_gradients.py:
- after any number of backward passes the accumulator is their sum in fp32;
- a parameter without a gradient has none here;
- without `stream`, `.grad` is what the user sees and changes.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from offload.subgroups import Segment, Subgroup
from offload.weights import local


class Gradients(Protocol):
    """What an update needs to know of gradients, wherever they are."""

    def collect(self) -> None:
        """Look up gradients that were left in `.grad`. Called once, when a step begins."""

    def has(self, parameter: int) -> bool:
        """Whether this parameter got a gradient since the last `clear`."""

    def on_host(self, subgroup: Subgroup, segment: Segment) -> Tensor:
        """The accumulator, a flat fp32 tensor in host memory, complete."""

    def norms(self) -> list[tuple[int, Tensor]]:
        """Parameter and norm of each part of this rank's gradients, 0-dim fp32 tensors."""

    def clear(self) -> None:
        """Forget the accumulators; the next backward starts anew. `.grad` is left alone."""

    def close(self) -> None:
        """Take the hooks off the parameters."""


def flat_gradient(parameter: nn.Parameter) -> Tensor:
    """This rank's gradient in one dim; the storage of `.grad` where its layout allows."""
    assert parameter.grad is not None, "asked for a gradient that does not exist"
    return local(parameter.grad).detach().reshape(-1)


class HostGradients:
    """Gradients of CPU parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, stream: bool) -> None:
        self._parameters = list(parameters)
        self._held: list[Tensor | None] = [None] * len(self._parameters)
        self._norms: dict[int, Tensor] = {}
        self._stream = stream
        self._hooks: list[RemovableHandle] = []
        if stream:
            for index, parameter in enumerate(self._parameters):
                hook = parameter.register_post_accumulate_grad_hook(
                    lambda _, index=index: self._arrived(index)
                )
                self._hooks.append(hook)

    def collect(self) -> None:
        if not self._stream:
            self._norms.clear()
        for index, parameter in enumerate(self._parameters):
            if self._stream:
                # Set by hand instead of by backward: taken as if it had just arrived.
                self._arrived(index)
            elif parameter.grad is None:
                self._held[index] = None
            else:
                self._held[index] = flat_gradient(parameter).to(torch.float32)

    def has(self, parameter: int) -> bool:
        return self._held[parameter] is not None

    def on_host(self, subgroup: Subgroup, segment: Segment) -> Tensor:
        held = self._held[segment.parameter]
        assert held is not None, "asked for the gradient of a parameter that has none"
        return held[segment.in_parameter]

    def norms(self) -> list[tuple[int, Tensor]]:
        found = []
        for index, held in enumerate(self._held):
            if held is not None:
                if index not in self._norms:
                    self._norms[index] = torch.linalg.vector_norm(held)
                found.append((index, self._norms[index]))
        return found

    def clear(self) -> None:
        self._held = [None] * len(self._parameters)
        self._norms.clear()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _arrived(self, index: int) -> None:
        parameter = self._parameters[index]
        if parameter.grad is None:
            return
        gradient = flat_gradient(parameter)
        parameter.grad = None
        self._norms.pop(index, None)
        held = self._held[index]
        if held is None:
            self._held[index] = gradient.to(torch.float32)
        else:
            held.add_(gradient)


def squared_norm(gradients: Gradients, device: torch.device) -> Tensor:
    """Sum of squares of all gradients of this rank, a 0-dim fp32 tensor."""
    norms = [norm for _, norm in gradients.norms()]
    return torch.stack(norms).square().sum() if norms else torch.zeros((), device=device)
