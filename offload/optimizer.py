"""AdamW whose states live outside device memory.

    optimizer = InterleavedAdamW(model.parameters(), lr=3e-4)
    loss.backward(); optimizer.step(); optimizer.zero_grad()

On CUDA, fp32 masters and moments are in pinned host memory; each step a share of the subgroups is
updated on the device while the host updates the rest. With a `DiskTier`, states are in files and
pass through a few buffers. On the CPU without a disk it is AdamW with fp32 masters.

Guarantees, each asserted in tests/offload/test_optimizer.py:
- fp32 weights on the CPU get the bits of `torch.optim.AdamW(fused=True)`, whatever the subgroup
  size and wherever states are, with and without overlap;
- weights change only if all gradients of this rank are finite, or if no check was asked for;
- a step that fails leaves the weights as they were, and the optimizer refuses to go on;
- its state loads into torch's AdamW, and torch's into it.
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from offload.adam import AdamRule
from offload.device_gradients import DeviceGradients
from offload.disk.tier import DiskTier
from offload.engine import Engine, Update
from offload.gradients import HostGradients, squared_norm
from offload.host_tensors import HostTensors
from offload.placing import Placing
from offload.state_dict import ADAMW_OPTIONS, refuse_variants, require_same_groups
from offload.state_store import StateStore
from offload.stats import Meter, UpdateStats
from offload.subgroups import cut_subgroups
from offload.tiers import TierOptions, build_lanes
from offload.weights import Weights


class InterleavedAdamW(Optimizer):
    """AdamW over plain parameters or FSDP2 shards, with states on the host, on disk, or both.

    Each rank updates its own part; no rank waits for another. `step` consumes the gradients:
    with `stream_gradients` they are taken out of `.grad` as backward makes them; without it they
    are read from `.grad` and may be overwritten there.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        share: float | Literal["auto"] = "auto",
        disk: DiskTier | None = None,
        disk_share: float = 1.0,
        subgroup_parameters: int = 25_000_000,
        buffers: int = 3,
        pin: bool = True,
        stream_gradients: bool = True,
        check_finite: bool = True,
        overlap: bool = True,
    ) -> None:
        self._built = False
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, hyper | ADAMW_OPTIONS)
        self._check_finite = check_finite
        self._stream_gradients = stream_gradients
        self._last = UpdateStats()
        options = TierOptions(disk=disk, buffers=buffers, pin=pin, overlap=overlap)
        self._build(options, subgroup_parameters, disk_share if disk else 0.0, share)
        self._built = True

    def _build(
        self,
        options: TierOptions,
        subgroup_parameters: int,
        disk_share: float,
        share: float | Literal["auto"],
    ) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._weights = Weights(parameters)
        self._subgroups = cut_subgroups(self._sizes(), subgroup_parameters)
        on_cuda = self._weights.device.type == "cuda"
        self._memory = HostTensors(pin=options.pin and on_cuda)
        self._placing = Placing(self._subgroups, disk_share=disk_share)
        lanes = build_lanes(
            self._weights,
            self._subgroups,
            on_disk=self._placing.on_disk,
            memory=self._memory,
            options=options,
        )
        self._gradients = self._take_gradients()
        self._engine = Engine(self._weights, self._subgroups, lanes, self._gradients)
        self._store = StateStore(self._weights, self._subgroups, lanes)
        self._meter = Meter(self._subgroups, lanes, options.disk)
        self._placing.start(share, lanes, self._weights.device)
        for parameter in parameters:
            self.state[parameter]["step"] = torch.zeros((), dtype=torch.float32)

    def _sizes(self) -> list[list[tuple[int, int]]]:
        """Index and local size of each group's parameters."""
        index = 0
        groups = []
        for group in self.param_groups:
            numbers = range(index, index + len(group["params"]))
            groups.append([(number, self._weights.size(number)) for number in numbers])
            index += len(group["params"])
        return groups

    def _take_gradients(self) -> HostGradients | DeviceGradients:
        parameters = self._weights.parameters
        if self._weights.device.type == "cpu":
            return HostGradients(parameters, stream=self._stream_gradients)
        return DeviceGradients(
            parameters,
            self._subgroups,
            host={s.index: self._memory.zeros(s.size) for s in self._subgroups},
            updates_on_device=lambda index: self._placing.latched()[index] == "device",
            stream=self._stream_gradients,
        )

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, grad_scale: float = 1.0
    ) -> float | None:
        """Update all parameters that have a gradient; gradients count times `grad_scale`.

        `grad_scale` carries a clipping factor and the inverse of a loss scale into the update,
        without a pass of its own.

        Raises:
            FloatingPointError: A gradient is not finite; nothing was changed. Call `zero_grad` and
                go on, or lower the learning rate or loss scale.
            DiskFailure: States could not be moved; weights are as before.
            RuntimeError: An earlier step failed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._require_whole()
        begin_s = time.perf_counter()
        self._gradients.collect()
        if self._check_finite:
            self._require_finite()
        touched = [i for i in range(len(self._weights.parameters)) if self._gradients.has(i)]
        self._update(touched, grad_scale)
        for index in touched:
            self._counter(index).add_(1.0)
        self._note(time.perf_counter() - begin_s)
        self._forget()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, those that were taken out of `.grad` too."""
        super().zero_grad(set_to_none=set_to_none)
        self._forget()

    @torch.no_grad()
    def squared_norm(self) -> Tensor:
        """Sum of squares of this rank's gradients, a 0-dim fp32 tensor on the weights' device.

        Over shards the norm is the root of the sum over ranks; the clipping factor from it goes to
        `step(grad_scale=…)`.
        """
        self._gradients.collect()
        return squared_norm(self._gradients, self._weights.device)

    def set_share(self, share: float) -> None:
        """From the next step on, let the device update this share of what is not on disk."""
        self._placing.set_share(share)

    @property
    def share(self) -> float:
        """The device's share of the subgroups that are not on disk."""
        return self._placing.share

    @property
    def last_update(self) -> UpdateStats:
        """What the last update moved and waited for."""
        return self._last

    @property
    def placing(self) -> Placing:
        """Places, rates and predictions."""
        return self._placing

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state dict, with `master` for weights that are not fp32; fp32 copies.

        Raises:
            RuntimeError: A step failed half-way, so that this state belongs to no step.
        """
        self._require_whole()
        packed = super().state_dict()
        entries = self._store.export()
        for index, entry in enumerate(entries):
            packed["state"][index] = {"step": self._counter(index).clone(), **entry}
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of this class or of torch's AdamW. Load the model's weights first.

        Raises:
            ValueError: Groups or sizes differ, or AdamW's state has a variant not offered here.
        """
        saved = state_dict["param_groups"]
        require_same_groups(self.param_groups, saved)
        refuse_variants(saved)
        keys = [key for group in saved for key in group["params"]]
        entries = [state_dict["state"].get(key) for key in keys]
        self._store.replace(entries)
        for index, entry in enumerate(entries):
            self._counter(index).fill_(float(entry["step"]) if entry else 0.0)
        for group, other in zip(self.param_groups, saved, strict=True):
            group.update({key: value for key, value in other.items() if key != "params"})
        self.zero_grad()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only while the optimizer is built: subgroups are cut once."""
        if self._built:
            raise ValueError(
                "parameters cannot be added to InterleavedAdamW later: its subgroups are cut; "
                "build a new one and load this one's state_dict"
            )
        super().add_param_group(param_group)

    def close(self) -> None:
        """Let go of the parameters, end transfers and unpin memory. The disk tier stays open."""
        self._gradients.close()
        if not self._engine.failed:
            self._store.settle()
        self._memory.close()

    def _update(self, touched: list[int], grad_scale: float) -> None:
        steps = [float(self._counter(i)) for i in range(len(self._weights.parameters))]
        for index in touched:
            steps[index] += 1.0
        rules = [
            AdamRule(
                lr=float(group["lr"]),
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )
            for group in self.param_groups
        ]
        work = Update(rules=rules, steps=steps, grad_scale=grad_scale)
        self._engine.update(work, self._placing.latched())

    def _require_whole(self) -> None:
        if self._engine.failed:
            raise RuntimeError(
                "an earlier step failed, so that weights and moments are not of one step; "
                "start again from the last checkpoint"
            )

    def _require_finite(self) -> None:
        norms = self._gradients.norms()
        if math.isfinite(float(squared_norm(self._gradients, self._weights.device))):
            return
        bad = sorted({index for index, norm in norms if not math.isfinite(float(norm))})
        raise FloatingPointError(
            f"the gradients of parameters {bad[:8]} (of {len(bad)}) are not finite; weights and "
            "moments were left alone: call zero_grad and go on, or lower the learning rate"
        )

    def _counter(self, index: int) -> Tensor:
        return self.state[self._weights.parameters[index]]["step"]

    def _forget(self) -> None:
        self._gradients.clear()
        self._placing.release()

    def _note(self, total_s: float) -> None:
        self._last, seen = self._meter.read(
            self._placing.latched(), host_s=self._engine.host_s, total_s=total_s
        )
        self._placing.observe(seen)
