"""Create and destroy process groups; the only caller of `init_process_group` and `new_group`."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class RankEnvironment:
    """Who this process is among the ranks, and where they meet."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    host: str
    """Name or address of this machine, for messages."""

    master_address: str
    master_port: int
    device_type: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    """Compute threads of this process."""

    @property
    def device(self) -> torch.device:
        """The device this rank computes on."""
        if self.device_type == "cuda":
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")


def join(environment: RankEnvironment, *, deadline_s: float) -> None:
    """Meet the other ranks in the default group. All ranks call it, once per process.

    gloo carries CPU tensors; on CUDA, NCCL carries the rest. Raises where a rank is missing after
    `deadline_s`.
    """
    cuda = environment.device_type == "cuda"
    if cuda:
        torch.cuda.set_device(environment.device)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=f"tcp://{environment.master_address}:{environment.master_port}",
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timedelta(seconds=deadline_s),
        device_id=environment.device if cuda else None,
    )


def side_group() -> dist.ProcessGroup:
    """A gloo group of all ranks for work beside the training thread. All ranks call it.

    Collectives of two threads must not share a group: their order would differ between ranks.
    """
    return dist.new_group(backend="gloo")


def leave() -> None:
    """Destroy all groups. Every rank calls it; calling it outside a group does nothing."""
    if dist.is_initialized():
        dist.destroy_process_group()
