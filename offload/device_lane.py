"""Subgroup states that visit the device for their update, and weights that the host updated.

All copies and updates of a step are enqueued at once; events order them, the host never waits for
them in between. Staging buffers on the device are allocated once.

Hand-overs, each guarded by an event:
- a buffer is fetched into only when its last flush has left it;
- the update waits for its fetch, the flush for its update;
- the host touches a subgroup's pinned states only when its last flush, and the last copy of its
  weights, have ended.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offload.states import SubgroupState
from offload.subgroups import Subgroup

Update = Callable[[Subgroup, SubgroupState], None]


class DeviceLane:
    """`buffers` staging sets for subgroups of at most `largest` elements on a CUDA device."""

    def __init__(
        self, device: torch.device, *, largest: int, buffers: int, overlap: bool = True
    ) -> None:
        self._sets = [
            [torch.empty(largest, dtype=torch.float32, device=device) for _ in range(3)]
            for _ in range(buffers)
        ]
        self._weights = torch.empty(largest, dtype=torch.float32, device=device)
        self._flushed: list[torch.cuda.Event | None] = [None] * buffers
        self._at_rest: dict[int, torch.cuda.Event] = {}
        self._device = device
        self._overlap = overlap
        self._in, self._away, self._weights_in = (torch.cuda.Stream(device) for _ in range(3))
        self._fetches, self._flushes = _Timing(), _Timing()
        self._next = 0
        # The staging tensors were made on the current stream.
        for stream in (self._in, self._away, self._weights_in):
            stream.wait_stream(torch.cuda.current_stream(device))

    def begin(self) -> None:
        """Before an update: whoever still reads the old weights on the current stream is first."""
        self._weights_in.wait_stream(torch.cuda.current_stream(self._device))

    def pass_through(self, subgroup: Subgroup, state: SubgroupState, update: Update) -> None:
        """Fetch pinned `state`, `update` it on the current stream, and flush it back."""
        assert state.master is not None, "on a device masters are kept beside the weights"
        number = self._next
        self._next = (number + 1) % len(self._sets)
        staged = [tensor[: subgroup.size] for tensor in self._sets[number]]
        compute = torch.cuda.current_stream(self._device)
        for event in (self._flushed[number], self._at_rest.get(subgroup.index)):
            if event is not None:
                self._in.wait_event(event)
        fetched = self._copy(self._in, state.tensors(), staged, self._fetches)
        compute.wait_event(fetched)
        update(subgroup, SubgroupState(exp_avg=staged[0], exp_avg_sq=staged[1], master=staged[2]))
        self._away.wait_stream(compute)
        flushed = self._copy(self._away, staged, state.tensors(), self._flushes)
        self._flushed[number] = self._at_rest[subgroup.index] = flushed
        self._in_order()

    def send_weights(
        self, subgroup: Subgroup, masters: Tensor, store: Callable[[Tensor], None]
    ) -> None:
        """Copy `masters`, which the host updated, to the device and `store` them there."""
        staged = self._weights[: subgroup.size]
        with torch.cuda.stream(self._weights_in):
            staged.copy_(masters, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._at_rest[subgroup.index] = event
            store(staged)
        self._in_order()

    def finish(self) -> None:
        """Let the current stream wait for all weights of this step; the host goes on."""
        torch.cuda.current_stream(self._device).wait_stream(self._weights_in)

    def rest(self, subgroup: Subgroup) -> None:
        """Wait until no copy touches the subgroup's pinned states."""
        event = self._at_rest.pop(subgroup.index, None)
        if event is not None:
            event.synchronize()

    def take_rates(self) -> tuple[float, float]:
        """Bytes per second of fetches and flushes that ended since the last call, or zeros."""
        return self._fetches.take_rate(), self._flushes.take_rate()

    def _copy(
        self,
        stream: torch.cuda.Stream,
        sources: Sequence[Tensor],
        targets: Sequence[Tensor],
        timing: "_Timing",
    ) -> torch.cuda.Event:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            begin.record()
            for source, target in zip(sources, targets, strict=True):
                target.copy_(source, non_blocking=True)
            end.record()
        timing.spans.append((begin, end, sum(source.nbytes for source in sources)))
        return end

    def _in_order(self) -> None:
        """Without overlap each hand-over ends before the next begins."""
        if not self._overlap:
            torch.cuda.synchronize(self._device)


class _Timing:
    """How long copies of one direction took, asked without waiting."""

    def __init__(self) -> None:
        self.spans: list[tuple[torch.cuda.Event, torch.cuda.Event, int]] = []

    def take_rate(self) -> float:
        ended = [span for span in self.spans if span[1].query()]
        self.spans = [span for span in self.spans if not span[1].query()]
        seconds = sum(begin.elapsed_time(end) for begin, end, _ in ended) / 1000.0
        return sum(span[2] for span in ended) / seconds if seconds > 0.0 else 0.0
