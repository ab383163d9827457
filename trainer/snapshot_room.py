"""How many hosts keep copies of each host's snapshots, and whether all of it fits their memory."""

import os

import torch.distributed as dist

from comms.config import RankEnvironment
from offload.host_memory import read_limits
from trainer.checkpoint.agreement import describe, exchange
from trainer.checkpoint.share import Share
from trainer.errors import ResourceError
from trainer.keeping.config import KeepingConfig
from trainer.keeping.hold import RESERVED_SLOTS
from trainer.keeping.pieces import payload_bytes, place_pieces
from trainer.keeping.room import needs_of_host, room_problem
from trainer.keeping.rules import without_copies
from trainer.keeping.slot import slot_bytes


def fitting_copies(
    config: KeepingConfig,
    share: Share,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    *,
    reserve_bytes: int = 0,
    islands: bool = False,
) -> tuple[int, str]:
    """On how many other hosts copies of each host's snapshots are kept, and why it is none where
    the recipe would leave room for some. All ranks call it and get the same answer. Slots have
    `reserve_bytes` for what is not planned; `islands` says that there are several.

    Raises ResourceError where hosts lack the room for what the recipe demands.
    """
    slot = slot_bytes(
        description_bytes=256 * len(share.pieces),
        payload_bytes=payload_bytes(place_pieces(share)) + reserve_bytes,
    )
    told = exchange(group, {"host": environment.host, "slot_bytes": slot})
    sizes = [(str(one["host"]), int(one["slot_bytes"])) for one in told]
    hosts = len({host for host, _ in sizes})
    copies = config.replicas_over(hosts, islands=islands)
    note = without_copies(config, hosts=hosts, islands=islands)
    problem = _problem(config, sizes, copies, environment, group)
    if problem and copies and config.replica_hosts == "auto":
        without = _problem(config, sizes, 0, environment, group)
        if not without:
            return 0, problem
        problem = without
    if problem:
        raise ResourceError(problem)
    return copies, note


def _problem(
    config: KeepingConfig,
    sizes: list[tuple[str, int]],
    copies: int,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
) -> str:
    """What is wrong on any of the hosts; empty where all is well."""
    slots = config.slots + (RESERVED_SLOTS if copies else 0)
    needs = needs_of_host(environment.host, sizes, slots=slots, copies=copies)
    found = exchange(group, _problem_here(config, needs))
    return "; ".join(sorted({problem for problem in found if problem is not None}))


def _problem_here(config: KeepingConfig, needs_bytes: list[int]) -> str | None:
    try:
        room = os.statvfs(config.dir)
        limits = read_limits()
    except OSError as error:
        return f"keep.dir={config.dir} cannot be used: {describe(error)}"
    free_bytes = limits.free_bytes
    if limits.cgroup_bytes is not None:
        free_bytes = min(free_bytes, limits.cgroup_bytes)
    return room_problem(
        needs_bytes,
        memory_bytes=free_bytes,
        folder_bytes=room.f_bavail * room.f_frsize,
        folder=config.dir,
    )
