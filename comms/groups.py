"""Create and destroy process groups; the only caller of `init_process_group` and `new_group`."""

import socket
from collections.abc import Iterable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from comms.config import RankEnvironment

COLLECTIVE_TIMEOUT_S = 1800.0
"""How long a collective may wait for a peer before it fails."""


def join(environment: RankEnvironment, *, deadline_s: float) -> None:
    """Meet the other ranks in the default group. All ranks call it, once per process.

    gloo carries CPU tensors; on CUDA, NCCL carries the rest. Raises `torch.distributed.DistError`
    where a rank is missing after `deadline_s`, OSError where rank 0 cannot have the port.
    """
    cuda = environment.device_type == "cuda"
    if cuda:
        torch.cuda.set_device(device_of(environment))
    # A store of its own keeps two deadlines apart: meeting is short, a collective may be long.
    store = dist.TCPStore(
        environment.master_address,
        environment.master_port,
        environment.world_size,
        is_master=environment.rank == 0,
        timeout=timedelta(seconds=deadline_s),
        master_listen_fd=_listen(environment) if environment.rank == 0 else None,
    )
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store,
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        device_id=torch.device(environment.device_name) if cuda else None,
    )


def _listen(environment: RankEnvironment) -> int:
    """A socket on the meeting address alone: left to itself the store listens everywhere."""
    place = (environment.master_address, environment.master_port)
    return socket.create_server(place, backlog=environment.world_size + 16).detach()


def side_group() -> dist.ProcessGroup:
    """A gloo group of all ranks for work beside the training thread. All ranks call it.

    Collectives of two threads must not share a group: their order would differ between ranks.
    """
    return dist.new_group(backend="gloo")


def own_group(
    lines: Iterable[Sequence[int]], *, backend: str | None = None
) -> dist.ProcessGroup | None:
    """A new communicator over this rank's line; None for a rank in none of them. All ranks of the
    world call it with the same lines, in the same order. `backend` None is that of `join`."""
    own = None
    for line in lines:
        made = dist.new_group(list(line), backend=backend)
        own = made if dist.get_rank() in line else own
    return own


def broadcast_bytes(payload: bytes, *, group: dist.ProcessGroup) -> bytes:
    """Give rank 0's bytes to all ranks of `group`, which all call it. Others pass b""."""
    if group.size() == 1:
        return payload
    size = torch.tensor([len(payload)], dtype=torch.int64)
    dist.broadcast(size, group_src=0, group=group)
    if group.rank() == 0:
        data = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    else:
        data = torch.empty(int(size.item()), dtype=torch.uint8)
    dist.broadcast(data, group_src=0, group=group)
    return bytes(data.numpy())


def leave() -> None:
    """Destroy all groups. Every rank calls it; calling it outside a group does nothing."""
    if dist.is_initialized():
        dist.destroy_process_group()


def device_of(environment: RankEnvironment) -> torch.device:
    """The device a rank computes on."""
    return torch.device(environment.device_name)
