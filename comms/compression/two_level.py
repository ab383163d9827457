"""Sum inside a host first, over its fast links, then between hosts, then spread the result."""

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from comms.compression.method import Phases
from comms.compression.ring import started
from comms.volume import gather_bytes


def shard_numel(numel: int, ranks: int) -> int:
    """Entries that one of `ranks` on a host exchanges with other hosts."""
    return -(-numel // ranks)


def inside_bytes(numel: int, ranks: int) -> dict[str, int]:
    """Bytes one rank sends inside its host, per operation."""
    full_bytes = 4 * ranks * shard_numel(numel, ranks)
    sent_bytes = gather_bytes(full_bytes, ranks)
    return {"reduce_scatter": sent_bytes, "all_gather": sent_bytes}


def over_hosts(
    flat: Tensor, inside: dist.ProcessGroup, between_hosts: Callable[[Tensor], Phases]
) -> Phases:
    """Sum `flat` over the ranks of a host, `between_hosts` its shard, and give all ranks all."""
    shard = flat.new_empty(shard_numel(flat.numel(), inside.size()))
    padded = flat.new_zeros(shard.numel() * inside.size())
    padded[: flat.numel()] = flat
    parts = list(padded.split(shard.numel()))
    yield started(dist.reduce_scatter(shard, parts, group=inside, async_op=True))
    yield from between_hosts(shard)
    yield started(dist.all_gather(parts, shard, group=inside, async_op=True))
    flat.copy_(padded[: flat.numel()])
    # A shard that is not finite made only its own part NaN; all ranks must drop the step.
    return bool(flat.sum().isfinite())
