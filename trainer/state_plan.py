"""Pure: where optimizer states go, and what that asks of a host.

Guarantees, each asserted in tests/trainer/test_state_plan.py:
- what the recipe names is tried alone; `auto` tries the device first, then host memory beside a
  device, then the disk where one is named, and takes the first that fits;
- keys of the recipe that the placement does not use are not looked at;
- a rank's need counts what a checkpoint copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from offload.config import OffloadConfig
from offload.host_memory import FLOAT_BYTES, HostLimits, RankNeed, find_problems, optimizer_need

Placement = Literal["device", "host", "interleaved", "disk"]

NOTHING = RankNeed()

DEVICE_FRACTION = 0.6
"""Of a device's memory that weights, gradients and states may take; activations, gathered weights
and the allocator's gaps want the rest."""

DEVICE_BYTES = 16
"""fp32 weight, gradient and two moments of a parameter."""

MOMENT_BYTES = 8
OUTER_BYTES = 8
"""Of a parameter where there are islands: its global value and the outer momentum."""

STAGED_BYTES = 12
"""Of a parameter in a checkpoint: fp32 weight and both moments."""


@dataclass(frozen=True, kw_only=True)
class StateOptions:
    """Where states are kept, and how they move."""

    placement: Placement
    share: float | None = None
    """Share of the states in memory that the device updates; None follows measured rates."""

    disk_share: float = 0.0
    subgroup_parameters: int = 25_000_000
    buffers: int = 3
    disk: tuple[str, ...] = ()
    """Directories of the scratch files."""

    disk_depth: int | Literal["auto"] = "auto"
    disk_timeout_s: float = 120.0


@dataclass(frozen=True, kw_only=True)
class RankStates:
    """Of one rank."""

    parameters: int
    """That this rank updates."""

    replicas: int
    """Ranks with the same parameters: they share the writing of checkpoints."""

    islands: int = 1
    """They share the writing of the outer state."""

    device_bytes: int
    """Memory of its device; 0 where it computes in host memory."""


def candidates(config: OffloadConfig, *, on_device: bool) -> tuple[Placement, ...]:
    """What to try, in order. `on_device` says that ranks have memory besides the host's."""
    if config.optimizer != "auto":
        return (config.optimizer,)
    beside: tuple[Placement, ...] = ("interleaved",) if on_device else ()
    disk: tuple[Placement, ...] = ("disk",) if config.disks else ()
    return ("device", *beside, *disk)


def options_of(placement: Placement, config: OffloadConfig) -> StateOptions:
    """How `placement` is set up; reads the keys that matter to it, and no others."""
    if placement == "device":
        return StateOptions(placement=placement)
    share: float | None = 0.0
    if placement == "interleaved":
        share = None if config.share == "auto" else config.share
    options = StateOptions(
        placement=placement,
        share=share,
        subgroup_parameters=config.subgroup_parameters,
        buffers=config.buffers,
    )
    if placement != "disk":
        return options
    return replace(
        options,
        disk_share=config.disk_share,
        disk=tuple(str(Path(folder).expanduser()) for folder in config.disks),
        disk_depth=config.disk_depth,
        disk_timeout_s=config.disk_timeout_s,
    )


def need_of(options: StateOptions, rank: RankStates, *, file_bytes: int) -> RankNeed:
    """Host memory and disk of one rank; `file_bytes` is what its scratch files take.

    Beside the states: the copy that a checkpoint stages, and the copy of the moments that is
    made for it.
    """
    staged_bytes = STAGED_BYTES * rank.parameters // rank.replicas
    if rank.islands > 1:
        outer_bytes = OUTER_BYTES * rank.parameters
        staged_bytes += outer_bytes + outer_bytes // (rank.replicas * rank.islands)
    on_device = rank.device_bytes > 0
    if options.placement == "device":
        own_bytes = 0 if on_device else MOMENT_BYTES * rank.parameters
        return RankNeed(pageable_bytes=own_bytes + staged_bytes)
    need = optimizer_need(
        rank.parameters,
        weight_bytes=FLOAT_BYTES,
        device=on_device,
        disk_share=options.disk_share,
        subgroup_parameters=options.subgroup_parameters,
        buffers=options.buffers,
    )
    copied_bytes = (STAGED_BYTES if on_device else MOMENT_BYTES) * rank.parameters
    return replace(
        need,
        pageable_bytes=need.pageable_bytes + staged_bytes + copied_bytes,
        file_bytes=file_bytes,
    )


def together(one: RankNeed, other: RankNeed) -> RankNeed:
    """What a rank needs that has both needs at one time."""
    return RankNeed(
        pinned_bytes=one.pinned_bytes + other.pinned_bytes,
        pageable_bytes=one.pageable_bytes + other.pageable_bytes,
        shared_bytes=one.shared_bytes + other.shared_bytes,
        file_bytes=one.file_bytes + other.file_bytes,
        cached_bytes=one.cached_bytes + other.cached_bytes,
    )


def problems_of(
    options: StateOptions,
    ranks: Sequence[RankStates],
    needs: Sequence[RankNeed],
    limits: HostLimits,
    *,
    fraction: float,
) -> list[str]:
    """Why the ranks of one host cannot keep their states this way; empty if they can."""
    found = find_problems(needs, limits, fraction=fraction)
    if options.placement != "device":
        return found
    for rank in ranks:
        held_bytes = DEVICE_BYTES * rank.parameters
        if rank.device_bytes and held_bytes > DEVICE_FRACTION * rank.device_bytes:
            found.append(
                f"{held_bytes / 2**30:.3g} GiB of weights, gradients and states are more than "
                f"{DEVICE_FRACTION:.0%} of a device's {rank.device_bytes / 2**30:.3g} GiB"
            )
            break
    return found
