"""Gradients of CUDA parameters, split by where they will be used.

As soon as backward has finished a gradient, the parts of subgroups that the host updates are cast
to fp32 on the device and copied into pinned accumulators on a stream of their own; the parts of
subgroups that the device updates stay. Adding up over several backward passes happens on the
device as well, so the host does no arithmetic before the update.

Guarantees, asserted in tests/offload/test_device_gradients.py on a CUDA device:
- each part is the fp32 sum of what arrived, on the side where it is needed;
- `on_host` and `on_device` hand out complete sums: every copy is waited for by an event.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from offload.gradients import flat_gradient
from offload.subgroups import Segment, Subgroup

Part = tuple[int, int, int]
"""Subgroup, parameter and start of one segment."""


class DeviceGradients:
    """`host` maps a subgroup to its pinned fp32 accumulator; `updates_on_device` is asked when a
    gradient arrives and must not change its answer before `clear`."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        subgroups: Sequence[Subgroup],
        *,
        host: Mapping[int, Tensor],
        updates_on_device: Callable[[int], bool],
        stream: bool,
    ) -> None:
        self._parameters = list(parameters)
        self._host = host
        self._updates_on_device = updates_on_device
        self._segments: dict[int, list[tuple[Subgroup, Segment]]] = defaultdict(list)
        for subgroup in subgroups:
            for segment in subgroup.segments:
                self._segments[segment.parameter].append((subgroup, segment))
        self._out = torch.cuda.Stream(parameters[0].device)
        self._held: dict[Part, Tensor] = {}
        self._norms: dict[Part, Tensor] = {}
        self._arrivals: dict[int, list[torch.cuda.Event]] = defaultdict(list)
        self._seen: set[int] = set()
        self._hooks: list[RemovableHandle] = []
        if stream:
            self._hooks = [
                p.register_post_accumulate_grad_hook(lambda _, index=index: self._arrived(index))
                for index, p in enumerate(self._parameters)
            ]

    def collect(self) -> None:
        for index in range(len(self._parameters)):
            self._arrived(index)

    def has(self, parameter: int) -> bool:
        return parameter in self._seen

    def on_host(self, subgroup: Subgroup, segment: Segment) -> Tensor:
        for event in self._arrivals[subgroup.index]:
            event.synchronize()
        return self._host[subgroup.index][segment.in_subgroup]

    def on_device(self, subgroup: Subgroup, segment: Segment) -> Tensor:
        """The accumulator on the device, in fp32; the current stream waits for it."""
        for event in self._arrivals[subgroup.index]:
            event.wait()
        held = self._held[_part(subgroup, segment)]
        held.record_stream(torch.cuda.current_stream(held.device))
        return held.to(torch.float32)

    def norms(self) -> list[tuple[int, Tensor]]:
        for events in self._arrivals.values():
            for event in events:
                event.wait()
        return [(part[1], norm) for part, norm in self._norms.items()]

    def clear(self) -> None:
        self._held.clear()
        self._norms.clear()
        self._arrivals.clear()
        self._seen.clear()

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
        first = index not in self._seen
        self._seen.add(index)
        for subgroup, segment in self._segments[index]:
            part = gradient[segment.in_parameter]
            if self._updates_on_device(subgroup.index):
                self._keep(subgroup, segment, part, first)
            else:
                self._send(subgroup, segment, part, first)

    def _keep(self, subgroup: Subgroup, segment: Segment, part: Tensor, first: bool) -> None:
        key = _part(subgroup, segment)
        if first:
            held = part
        else:
            # The earlier part may have been made on another stream.
            for event in self._arrivals[subgroup.index]:
                event.wait()
            held = self._held[key].to(torch.float32).add_(part)
        self._held[key] = held
        self._norms[key] = torch.linalg.vector_norm(held, dtype=torch.float32)
        self._mark(subgroup, torch.cuda.current_stream(part.device))

    def _send(self, subgroup: Subgroup, segment: Segment, part: Tensor, first: bool) -> None:
        key = _part(subgroup, segment)
        accumulator = self._host[subgroup.index][segment.in_subgroup]
        self._out.wait_stream(torch.cuda.current_stream(part.device))
        with torch.cuda.stream(self._out):
            total = part.to(torch.float32)
            if not first:
                before = torch.empty_like(total)
                before.copy_(accumulator, non_blocking=True)
                total = before.add_(total)
            accumulator.copy_(total, non_blocking=True)
            norm = torch.linalg.vector_norm(total)
        # Memory of the gradient may be handed out again only when this stream has read it.
        part.record_stream(self._out)
        self._norms[key] = norm
        self._mark(subgroup, self._out)

    def _mark(self, subgroup: Subgroup, stream: torch.cuda.Stream) -> None:
        event = torch.cuda.Event()
        event.record(stream)
        self._arrivals[subgroup.index].append(event)


def _part(subgroup: Subgroup, segment: Segment) -> Part:
    return subgroup.index, segment.parameter, segment.start
