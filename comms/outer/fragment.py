"""A few blocks' parameters, and what all islands hold in common of them.

Guarantees, each asserted in tests/comms/outer/test_fragment.py:
- the outer step is bitwise that of `torch.optim.SGD`, with and without Nesterov momentum;
- the global parameters and the momentum change in `commit` and `restore` alone;
- a merge keeps `mixing` of the parameters and takes the rest from the global ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comms.outer.shards import flat_of, part_of, views_of


@dataclass(frozen=True, slots=True)
class OuterState:
    """Global parameters and outer momentum of this rank's parts: flat, fp32, of equal length."""

    parameters: Tensor
    momentum: Tensor

    def to(self, device: torch.device) -> "OuterState":
        """The state on `device`; itself where it is there already."""
        return OuterState(
            self.parameters.to(device, non_blocking=True),
            self.momentum.to(device, non_blocking=True),
        )


def outer_step(state: OuterState, gradient: Tensor, *, lr: float, momentum: float) -> OuterState:
    """One step of SGD with Nesterov momentum, which leaves `state` as it is."""
    if momentum == 0:
        return OuterState(state.parameters.add(gradient, alpha=-lr), state.momentum)
    velocity = state.momentum.mul(momentum).add_(gradient)
    update = gradient.add(velocity, alpha=momentum)
    return OuterState(state.parameters.add(update, alpha=-lr), velocity)


class Fragment:
    """Named parameters that travel together. The outer state rests in host memory, which costs 8
    bytes per element of this rank's parts."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.names = tuple(named)
        self.parameters = tuple(named.values())
        first = self.parameters[0]
        self.device = first.device
        pinned = self.device.type == "cuda"
        parameters = flat_of(self._parts()).cpu()
        momentum = torch.zeros_like(parameters)
        if pinned:
            parameters, momentum = parameters.pin_memory(), momentum.pin_memory()
        self._resting = OuterState(parameters, momentum)

    @property
    def numel(self) -> int:
        """Elements of this rank's parts."""
        return self._resting.parameters.numel()

    @property
    def state(self) -> OuterState:
        """The outer state in host memory; not to be written to."""
        return self._resting

    def gradient(self, state: OuterState) -> Tensor:
        """The outer gradient: global parameters minus this island's, flat fp32, on the device."""
        return state.parameters - flat_of(self._parts())

    def commit(self, state: OuterState) -> None:
        """Keep a new outer state, from whatever device."""
        if self.device.type != "cuda":
            self._resting = state
            return
        # Into the same pinned memory, which the device's copies reach without a detour.
        self._resting.parameters.copy_(state.parameters)
        self._resting.momentum.copy_(state.momentum)

    def restore(self, state: OuterState) -> None:
        """Take over an outer state that is another island's, or was saved."""
        self.commit(OuterState(state.parameters.clone(), state.momentum.clone()))

    def merge(self, parameters: Tensor, mixing: float) -> None:
        """Keep `mixing` of this island's parameters and take the rest from flat global ones."""
        parts = self._parts()
        with torch.no_grad():
            for part, news in zip(parts, views_of(parameters, parts), strict=True):
                if mixing:
                    part.copy_(torch.lerp(news, part.float(), mixing))
                else:
                    part.copy_(news)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat tensor under the parameters' names, in the shapes of the parts."""
        return dict(zip(self.names, views_of(flat, self._parts()), strict=True))

    def _parts(self) -> list[Tensor]:
        return [part_of(parameter) for parameter in self.parameters]


def require_distinct(fragments: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise ValueError where fragments are empty, share names, or lie on several devices."""
    empty = [number for number, named in enumerate(fragments) if not named]
    if empty:
        raise ValueError(f"Fragments {empty} hold no parameter. Use fewer fragments.")
    names = [name for named in fragments for name in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice} are in several fragments; a parameter belongs to one.")
    devices = {p.device for named in fragments for p in named.values()}
    if len(devices) > 1:
        raise ValueError(f"Parameters lie on {sorted(map(str, devices))}; one device is needed.")
