"""Rates of this rank and its links, measured in a fraction of a second at start."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from comms.volume import all_reduce_bytes
from parallel.sequence.scheme import Links
from trainer.planner.costs import Hardware

PEAK_BF16_FLOPS_PER_S = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "B200": 2250e12,
}
"""Dense bf16 matrix rates from the makers' data sheets, by a part of the device's name."""

_UPDATE_PARAMETERS = 1_000_000
_LINK_FLOATS = 262_144


def measure_hardware(
    device: torch.device, *, ranks_per_host: int, group: dist.ProcessGroup | None = None
) -> Hardware:
    """Measure matrix products, an AdamW update, an all-reduce and links between pairs of ranks of
    `group`, the default one where there is none. All ranks call it together."""
    # The same number everywhere: MFU must not depend on which rank happened to be disturbed.
    peaks = torch.tensor(_peak_flops_per_s(device), dtype=torch.float64)
    dist.all_reduce(peaks, op=dist.ReduceOp.MAX)
    peak = peaks.item()
    return Hardware(
        peak_flops_per_s=peak,
        # A rough start: the first steps correct it.
        flops_per_s=0.5 * peak,
        update_parameters_per_s=_update_parameters_per_s(device),
        link_bytes_per_s=_link_bytes_per_s(device, group),
        links=measure_links(device, ranks_per_host=ranks_per_host, group=group),
    )


def measure_links(
    device: torch.device, *, ranks_per_host: int, group: dist.ProcessGroup | None = None
) -> Links | None:
    """Rates inside a host and between hosts, alone and with all ranks of a host at once. None for
    a single rank. All ranks of `group` call it together, with the same `ranks_per_host`;
    neighbours in rank share hosts.

    Every rank sends to and receives from one partner; the slowest pair counts.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    if ranks == 1:
        return None
    inside = min(ranks_per_host, ranks)
    near = rank ^ 1
    far = rank + inside if rank // inside % 2 == 0 else rank - inside
    has_near = inside > 1 and near < ranks and near // inside == rank // inside
    # Without a device, the copies of a transfer take the cores that compute.
    overlap = 1.0 if device.type == "cuda" or ranks > inside else 0.0
    inside_rate = _pair_bytes_per_s(device, near if has_near else None, group)
    if ranks <= inside:
        return Links(
            inside_bytes_per_s=inside_rate, between_bytes_per_s=inside_rate, overlap=overlap
        )
    has_far = 0 <= far < ranks
    together = _pair_bytes_per_s(device, far if has_far else None, group)
    alone = _pair_bytes_per_s(device, far if has_far and rank % inside == 0 else None, group)
    return Links(
        inside_bytes_per_s=inside_rate if inside > 1 else alone,
        between_bytes_per_s=alone,
        host_bytes_per_s=together * inside,
        overlap=overlap,
    )


def _pair_bytes_per_s(
    device: torch.device, partner: int | None, group: dist.ProcessGroup | None
) -> float:
    """Bytes per second that the slowest rank with a partner sends while it receives as many."""
    mine, theirs = (torch.zeros(_LINK_FLOATS, device=device) for _ in range(2))

    def exchange() -> None:
        if partner is None:
            return
        sent = dist.P2POp(dist.isend, mine, group=group, group_peer=partner)
        received = dist.P2POp(dist.irecv, theirs, group=group, group_peer=partner)
        for work in dist.batch_isend_irecv([sent, received]):
            work.wait()

    seconds = _fastest_s(exchange, device, repeats=3) if partner is not None else 0.0
    slowest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=group)
    return 4 * _LINK_FLOATS / max(slowest.item(), 1e-9)


def _peak_flops_per_s(device: torch.device) -> float:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [key for key in PEAK_BF16_FLOPS_PER_S if key in name]
        if known:
            return PEAK_BF16_FLOPS_PER_S[max(known, key=len)]
        return _matmul_flops_per_s(device, size=4096, dtype=torch.bfloat16)
    return _matmul_flops_per_s(device, size=512, dtype=torch.float32)


def _matmul_flops_per_s(device: torch.device, *, size: int, dtype: torch.dtype) -> float:
    a = torch.ones(size, size, device=device, dtype=dtype)
    return 2.0 * size**3 / _fastest_s(lambda: torch.mm(a, a), device, repeats=8)


def _update_parameters_per_s(device: torch.device) -> float:
    parameter = torch.nn.Parameter(torch.zeros(_UPDATE_PARAMETERS, device=device))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    return _UPDATE_PARAMETERS / _fastest_s(optimizer.step, device, repeats=4)


def _link_bytes_per_s(device: torch.device, group: dist.ProcessGroup | None) -> float:
    ranks = dist.get_world_size(group)
    payload = torch.zeros(_LINK_FLOATS, device=device)
    seconds = _fastest_s(lambda: dist.all_reduce(payload, group=group), device, repeats=4)
    return max(all_reduce_bytes(4 * _LINK_FLOATS, ranks), 1) / seconds


def _fastest_s(work: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """Least seconds of some repeats, the first of which warms up."""
    fastest = float("inf")
    for _ in range(repeats):
        begin_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - begin_s)
    return fastest
