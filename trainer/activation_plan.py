"""Pure: what a recipe wants of activations, and which room it is given for them.

Guarantees, each asserted in tests/trainer/test_activation_plan.py:
- keys that the wanted policy does not use are not looked at;
- `train.recompute` and `offload.activations: recompute` are the same;
- a tier takes what all blocks of a step need, or what of the host is left beside the states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offload.activations.policy import Kind, Tier
from offload.host_memory import HostLimits, RankNeed
from parallel.pipeline.schedule import PipelineShape
from trainer.config import JobConfig
from trainer.state_plan import DEVICE_BYTES, DEVICE_FRACTION

SLACK = 1.1
"""Room on a tier over the bytes that formulas give: places are whole pages, shapes differ."""

USABLE = 0.9
"""Of a device's memory; the allocator's gaps want the rest."""

WEIGHT_BYTES = 8
"""fp32 weight and gradient of a parameter."""

HOST_SHARE = 0.5
"""Of what a host has left, what activations may take unless the recipe names bytes; optimizer
states and checkpoints want the rest."""


@dataclass(frozen=True, kw_only=True)
class ActivationWish:
    """The keys of the recipe that matter to the policy it wants; the others keep defaults."""

    kinds: tuple[Kind, ...]
    """What to choose from; several for `auto`."""

    share: float | None = None
    """Alpha where the recipe fixes it."""

    tiers: tuple[Tier, ...] = ()
    """Where activations may go, in order of preference."""

    tier_bytes: int | None = None
    """None takes what a step needs."""

    min_bytes: int = 1 << 20
    kept_blocks: int = 0
    disks: tuple[str, ...] = ()
    disk_depth: int | Literal["auto"] = "auto"
    disk_timeout_s: float = 120.0


def wish_of(job: JobConfig, *, on_device: bool) -> ActivationWish:
    """What `job` wants. `on_device` says that ranks have memory besides the host's.

    Raises ValueError for a swap that has nowhere to go.
    """
    wanted = job.offload.activations
    if job.train.recompute or wanted == "recompute":
        return ActivationWish(kinds=("recompute",))
    if wanted == "keep":
        return ActivationWish(kinds=("keep",))
    if wanted == "selective":
        return ActivationWish(kinds=("selective",), min_bytes=job.offload.activation_min_bytes)
    if wanted == "auto" and job.train.compile:
        return ActivationWish(kinds=("keep", "recompute"))
    return _swapping(job, on_device=on_device)


def _swapping(job: JobConfig, *, on_device: bool) -> ActivationWish:
    offload = job.offload
    only = offload.activations == "swap"
    tiers = _tiers(job, on_device=on_device)
    if only and not tiers:
        raise ValueError(
            "offload.activations is swap, but activations have nowhere to go: without a device "
            "they are in host memory already; name a folder on a local disk in offload.disk"
        )
    kinds: tuple[Kind, ...] = ("swap",)
    if not only:
        kinds = ("keep", "selective", "recompute", *(("swap",) if tiers else ()))
    to_disk = "disk" in tiers
    return ActivationWish(
        kinds=kinds,
        share=None if offload.activation_share == "auto" else offload.activation_share,
        tiers=tiers,
        tier_bytes=None if offload.activation_bytes == "auto" else offload.activation_bytes,
        min_bytes=offload.activation_min_bytes,
        kept_blocks=offload.activation_kept_blocks,
        disks=_folders(offload.disks) if to_disk else (),
        disk_depth=offload.disk_depth if to_disk else "auto",
        disk_timeout_s=offload.disk_timeout_s if to_disk else 120.0,
    )


def _tiers(job: JobConfig, *, on_device: bool) -> tuple[Tier, ...]:
    wanted = job.offload.activation_tier
    host: tuple[Tier, ...] = ("host",) if on_device and wanted in ("auto", "host") else ()
    disk: tuple[Tier, ...] = ("disk",) if job.offload.disks and wanted in ("auto", "disk") else ()
    return (*host, *disk)


def _folders(disks: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(Path(folder).expanduser()) for folder in disks)


def wanted_tier_bytes(moved_bytes: float, *, blocks: int, stripe_bytes: int) -> int:
    """Room for `blocks` that move so much each, whole stripes."""
    return -(-round(SLACK * blocks * moved_bytes) // stripe_bytes) * stripe_bytes


def tier_room_bytes(tier: Tier, limits: HostLimits, *, fraction: float, ranks_on_host: int) -> int:
    """What a rank may take of its host without being told how much."""
    if tier == "disk":
        return int(HOST_SHARE * (limits.disk_bytes or 0)) // ranks_on_host
    return int(HOST_SHARE * fraction * _left_bytes(limits)) // ranks_on_host


def need_of_tier(
    tier: Tier, num_bytes: int, *, staging_bytes: int, buffers_bytes: int, on_device: bool
) -> RankNeed:
    """Host memory and disk of a rank whose tier has `num_bytes`.

    `buffers_bytes` are those that tensors return to, in host memory where that is the device's.
    """
    beside_bytes = 0 if on_device else buffers_bytes
    if tier == "disk":
        pinned_bytes = staging_bytes if on_device else 0
        return RankNeed(
            file_bytes=num_bytes,
            pinned_bytes=pinned_bytes,
            pageable_bytes=beside_bytes + staging_bytes - pinned_bytes,
        )
    return RankNeed(pinned_bytes=num_bytes, pageable_bytes=beside_bytes)


def device_room_bytes(
    capacity_bytes: int, *, parameters: int, states: str, transient_bytes: int
) -> int:
    """What a device of `capacity_bytes` leaves to activations.

    `parameters` are this rank's; `states` is `offload.optimizer`.
    """
    beside = DEVICE_BYTES * parameters
    if states not in ("auto", "device") or beside > DEVICE_FRACTION * capacity_bytes:
        beside = WEIGHT_BYTES * parameters
    return max(int(USABLE * capacity_bytes) - beside - transient_bytes, 0)


def host_room_bytes(
    limits: HostLimits,
    *,
    fraction: float,
    ranks_on_host: int,
    parameters: int,
    transient_bytes: int,
) -> int:
    """What host memory leaves to a rank's activations where it is the device's."""
    left_bytes = int(fraction * _left_bytes(limits)) // ranks_on_host
    return max(left_bytes - DEVICE_BYTES * parameters - transient_bytes, 0)


def waiting_rounds(shape: PipelineShape | None, rounds: int) -> int:
    """Of how many rounds activations wait at one time on the rank that holds most."""
    if shape is None:
        return 1
    most = max(shape.kept(rank, rounds) for rank in range(shape.ranks))
    return -(-most // shape.stages_per_rank)


def _left_bytes(limits: HostLimits) -> int:
    if limits.cgroup_bytes is None:
        return limits.free_bytes
    return min(limits.free_bytes, limits.cgroup_bytes)
