"""One update of all subgroups, each where it was placed.

Guarantees, each asserted in tests/offload/test_engine.py:
- every subgroup with a gradient is updated exactly once per call;
- with or without overlap, the same bits;
- if a disk fails on the way, all weights are those from before the call: each weight's old value
  is kept in its gradient's place, which the update no longer needs;
- after such a failure the engine refuses to go on, because moments may be lost.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offload.adam import AdamRule, adam_update
from offload.device_gradients import DeviceGradients
from offload.device_lane import DeviceLane
from offload.disk_lane import DiskLane
from offload.gradients import HostGradients
from offload.schedule import Place
from offload.states import SubgroupState
from offload.subgroups import Segment, Subgroup
from offload.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one call of the optimizer applies."""

    rules: Sequence[AdamRule]
    """One per parameter group."""

    steps: Sequence[float]
    """Updates of each parameter, this one included."""

    grad_scale: float


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """Where states are and how they get to where they are updated."""

    host: Mapping[int, SubgroupState]
    """States in host memory by subgroup, pinned where a device exists."""

    disk: DiskLane | None
    device: DeviceLane | None


class Engine:
    """Runs updates. One thread uses it."""

    def __init__(
        self,
        weights: Weights,
        subgroups: Sequence[Subgroup],
        lanes: Lanes,
        gradients: HostGradients | DeviceGradients,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._weights = weights
        self._subgroups = list(subgroups)
        self._lanes = lanes
        self._gradients = gradients
        self._clock = clock
        self._done: list[Subgroup] = []
        self.failed = False
        self.host_s = 0.0
        largest = max((s.size for s in subgroups), default=0) if lanes.disk else 0
        self._old = torch.empty(largest)

    def update(self, work: Update, places: Sequence[Place]) -> None:
        """Update every parameter that has a gradient; `places` has one place per subgroup.

        Raises:
            DiskFailure: States could not be read or written; weights are as before.
        """
        self._done.clear()
        self.host_s = 0.0
        complete = False
        if self._lanes.device is not None:
            self._lanes.device.begin()
        try:
            if self._lanes.disk is None:
                # Enqueued first and waited for by nobody: the host's share runs beside it.
                self._update_on_device(work, places)
            self._update_on_host(work, places)
            if self._lanes.disk is not None:
                # A device that runs ahead could not be taken back if the disk failed.
                self._update_on_device(work, places)
            complete = True
        finally:
            if not complete:
                self.failed = True
                self._undo()
        if self._lanes.device is not None:
            self._lanes.device.finish()

    def _update_on_device(self, work: Update, places: Sequence[Place]) -> None:
        lane, gradients = self._lanes.device, self._gradients
        if lane is None or not isinstance(gradients, DeviceGradients):
            return

        def update(subgroup: Subgroup, state: SubgroupState) -> None:
            segments = self._segments(subgroup)
            grads = [gradients.on_device(subgroup, segment) for segment in segments]
            self._adam(work, subgroup, state, grads)
            assert state.master is not None, "the device works on masters"
            self._store(subgroup, state.master)

        for subgroup in self._subgroups:
            if places[subgroup.index] == "device" and self._segments(subgroup):
                lane.pass_through(subgroup, self._lanes.host[subgroup.index], update)

    def _update_on_host(self, work: Update, places: Sequence[Place]) -> None:
        """Whatever is in memory fills the time in which the disk brings the next subgroup."""
        here = deque(s for s in self._subgroups if places[s.index] == "host")
        disk = self._lanes.disk
        if disk is not None:
            disk.begin()
        while here or (disk is not None and disk.remaining):
            if disk is not None and disk.remaining and (disk.ready or not here):
                subgroup, state = disk.take()
                self._update_one(work, subgroup, state)
                disk.give(subgroup)
            else:
                subgroup = here.popleft()
                self._update_one(work, subgroup, self._lanes.host[subgroup.index])

    def _update_one(self, work: Update, subgroup: Subgroup, state: SubgroupState) -> None:
        segments = self._segments(subgroup)
        device = self._lanes.device
        if device is not None:
            device.rest(subgroup)
        grads = [self._gradients.on_host(subgroup, segment) for segment in segments]
        begin_s = self._clock()
        old = [self._keep_old(state, segment) for segment in segments]
        self._adam(work, subgroup, state, grads)
        for grad, before in zip(grads, old, strict=True):
            if before is not None:
                grad.copy_(before)
        self.host_s += self._clock() - begin_s
        self._done.append(subgroup)
        if device is not None:
            assert state.master is not None, "on a device masters are kept beside the weights"
            device.send_weights(
                subgroup, state.master, lambda masters: self._store(subgroup, masters)
            )
        elif state.master is not None:
            self._store(subgroup, state.master)

    def _keep_old(self, state: SubgroupState, segment: Segment) -> Tensor | None:
        """The masters before the update; only a disk can fail half-way."""
        if self._lanes.disk is None:
            return None
        return self._old[segment.in_subgroup].copy_(state.master_of(segment, self._weights))

    def _adam(
        self, work: Update, subgroup: Subgroup, state: SubgroupState, grads: Sequence[Tensor]
    ) -> None:
        segments = self._segments(subgroup)
        adam_update(
            work.rules[subgroup.group],
            masters=[state.master_of(segment, self._weights) for segment in segments],
            grads=grads,
            exp_avgs=[state.exp_avg[segment.in_subgroup] for segment in segments],
            exp_avg_sqs=[state.exp_avg_sq[segment.in_subgroup] for segment in segments],
            steps=[work.steps[segment.parameter] for segment in segments],
            grad_scale=work.grad_scale,
        )

    def _store(self, subgroup: Subgroup, masters: Tensor) -> None:
        for segment in self._segments(subgroup):
            self._weights.segment(segment).copy_(masters[segment.in_subgroup])

    def _undo(self) -> None:
        if self._lanes.disk is None:
            return
        for subgroup in self._done:
            for segment in self._segments(subgroup):
                before = self._gradients.on_host(subgroup, segment)
                self._weights.segment(segment).copy_(before)

    def _segments(self, subgroup: Subgroup) -> list[Segment]:
        return [s for s in subgroup.segments if self._gradients.has(s.parameter)]
