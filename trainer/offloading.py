"""The optimizer of a rank, with its states where the recipe and the host's memory put them.

Guarantees, each asserted in tests/trainer/test_offloading.py:
- all ranks keep their states in the same kind of place;
- what does not fit, cannot be written or cannot be pinned is a ResourceError on every rank, before
  the first step.
"""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import device_of
from offload.disk.speed import measure_speed
from offload.disk.tier import STRIPE_BYTES, DiskTier
from offload.disk_lane import record_bytes
from offload.host_memory import HostLimits, RankNeed, read_limits
from offload.schedule import spread
from offload.subgroups import cut_subgroups
from offload.weights import local
from parallel.layout import Layout
from trainer.checkpoint.agreement import exchange
from trainer.config import JobConfig
from trainer.errors import ResourceError
from trainer.memory import device_capacity_bytes
from trainer.model.holder import HasParameters
from trainer.offloaded import OffloadedAdamW
from trainer.optim import DeviceAdamW, Optimizer, parameter_groups
from trainer.sgd import DeviceSGD
from trainer.state_plan import (
    NOTHING,
    RankStates,
    StateOptions,
    candidates,
    need_of,
    options_of,
    problems_of,
    together,
)
from trainer.together import on_all_ranks


@dataclass(frozen=True, kw_only=True)
class _Rank:
    """What one rank tells the others."""

    host: str
    states: RankStates
    needs: tuple[RankNeed, ...]
    """One per candidate."""


def build_optimizer(
    model: HasParameters,
    config: JobConfig,
    layout: Layout,
    environment: RankEnvironment,
    *,
    beside: RankNeed = NOTHING,
) -> Optimizer:
    """The optimizer over the parameters of `model`, which are filled. All ranks call it.

    `beside` is what activations will take of host and disk. Raises ResourceError where states fit
    nowhere that the recipe allows.
    """
    on_device = environment.device_type == "cuda"
    places = candidates(config.offload, on_device=on_device)
    if config.optim.name == "sgd":
        return DeviceSGD(model, config.optim, momentum_applied=config.comms.replica.method == "dgc")
    if places == ("device",) and beside == NOTHING:
        return DeviceAdamW(model, config.optim)
    tried = [options_of(place, config.offload) for place in places]
    options = _choose(model, config, layout, environment, tried, beside)
    if options.placement == "device":
        return DeviceAdamW(model, config.optim)
    file_bytes = _scratch_bytes(model, config, options, with_master=on_device)
    return on_all_ranks(
        "make room for optimizer states", lambda: _open(model, config, options, file_bytes)
    )


def _choose(
    model: HasParameters,
    config: JobConfig,
    layout: Layout,
    environment: RankEnvironment,
    tried: list[StateOptions],
    beside: RankNeed,
) -> StateOptions:
    """The first that fits on every host."""
    on_device = environment.device_type == "cuda"
    device_bytes = 0
    if on_device:
        device_bytes = device_capacity_bytes(
            device_of(environment), ranks_on_host=environment.local_world_size
        )
    states = RankStates(
        parameters=sum(local(p).numel() for _, p in model.named_parameters()),
        replicas=layout.replica,
        islands=layout.island,
        device_bytes=device_bytes,
    )
    needs = [
        together(
            beside,
            need_of(
                options,
                states,
                file_bytes=_scratch_bytes(model, config, options, with_master=on_device),
            ),
        )
        for options in tried
    ]
    # What activations take on disk counts for every place of the states.
    disks = config.offload.disks if beside.file_bytes else ()
    # Read before ranks meet here, and so before any of them takes memory.
    limits = on_all_ranks(
        "look at their hosts",
        lambda: [read_limits(disks=options.disk or disks) for options in tried],
    )
    own = _Rank(host=environment.host, states=states, needs=tuple(needs))
    ranks = [_decoded(fields) for fields in exchange(dist.group.WORLD, asdict(own))]
    neighbours = [rank for rank in ranks if rank.host == own.host]
    problems = _problems_everywhere(tried, neighbours, limits, config.offload.host_memory_fraction)
    for options, found in zip(tried, problems, strict=True):
        if not found:
            return options
    lines = [f"{o.placement}: {'; '.join(found)}" for o, found in zip(tried, problems, strict=True)]
    also = "" if beside == NOTHING else " and activations as offload.activations asks"
    raise ResourceError(
        "optimizer states do not fit as offload.optimizer="
        f"{config.offload.optimizer} asks{also} ({' | '.join(lines)}). Free memory or disk, shard "
        "over more ranks, or name another place (offload.optimizer, offload.disk"
        f"{', offload.activations' if also else ''})"
    )


def _problems_everywhere(
    tried: list[StateOptions],
    neighbours: list[_Rank],
    limits: list[HostLimits],
    fraction: float,
) -> list[list[str]]:
    """Problems of each candidate on any host; the same on all ranks."""
    own = [
        problems_of(
            options,
            [rank.states for rank in neighbours],
            [rank.needs[number] for rank in neighbours],
            limits[number],
            fraction=fraction,
        )
        for number, options in enumerate(tried)
    ]
    everywhere = exchange(dist.group.WORLD, {"host": neighbours[0].host, "problems": own})
    return [
        sorted({f"{r['host']}: {line}" for r in everywhere for line in r["problems"][number]})
        for number in range(len(tried))
    ]


def _open(
    model: HasParameters, config: JobConfig, options: StateOptions, file_bytes: int
) -> OffloadedAdamW:
    with ExitStack() as stack:
        tier = None
        if file_bytes:
            tier = _tier(options, file_bytes)
            stack.callback(tier.close)
        optimizer = OffloadedAdamW(model, config.optim, options, tier)
        stack.pop_all()
    return optimizer


def _tier(options: StateOptions, file_bytes: int) -> DiskTier:
    depth = options.disk_depth
    if depth == "auto":
        depth = measure_speed(options.disk, num_bytes=min(64 * STRIPE_BYTES, file_bytes)).depth
    return DiskTier(
        options.disk, capacity_bytes=file_bytes, depth=depth, timeout_s=options.disk_timeout_s
    )


def _scratch_bytes(
    model: HasParameters, config: JobConfig, options: StateOptions, *, with_master: bool
) -> int:
    """What the scratch files of this rank take."""
    if options.placement != "disk":
        return 0
    numbers = iter(range(sum(1 for _ in model.named_parameters())))
    sizes = [
        [(next(numbers), local(parameter).numel()) for parameter in group["params"]]
        for group in parameter_groups((p for _, p in model.named_parameters()), config.optim)
    ]
    subgroups = cut_subgroups(sizes, options.subgroup_parameters)
    stored = spread(len(subgroups), round(options.disk_share * len(subgroups)))
    needed_bytes = sum(
        record_bytes(subgroup, with_master=with_master)
        for subgroup, on_disk in zip(subgroups, stored, strict=True)
        if on_disk
    )
    stripe_bytes = STRIPE_BYTES * len(options.disk)
    return -(-needed_bytes // stripe_bytes) * stripe_bytes


def _decoded(fields: dict[str, Any]) -> _Rank:
    return _Rank(
        host=fields["host"],
        states=RankStates(**fields["states"]),
        needs=tuple(RankNeed(**need) for need in fields["needs"]),
    )
