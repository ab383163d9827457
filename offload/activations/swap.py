"""Swap the saved tensors of any PyTorch loop with one `with`.

    with swap_activations(disk=["/nvme0"]):
        loss = model(batch)
    loss.backward()

Guarantees, each asserted in tests/offload/activations/test_swap.py:
- what was opened for the `with` is closed once its last graph is gone;
- one `with` inside another is refused;
- an exception inside leaves no file, no place and no thread behind.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from offload.activations.disk_store import DiskStore
from offload.activations.engine import ActivationSwap
from offload.activations.records import SwapOptions
from offload.activations.stores import ActivationStore, HostStore
from offload.disk.tier import DiskTier

GIB = 1024**3

_ACTIVE: ContextVar[bool] = ContextVar("activation swap is active", default=False)


@contextmanager
def swap_activations(
    swap: ActivationSwap | None = None,
    *,
    disk: Sequence[str | Path] = (),
    capacity_bytes: int = 8 * GIB,
    options: SwapOptions | None = None,
) -> Iterator[ActivationSwap]:
    """Let tensors that are saved inside leave memory; backward may run inside or after.

    With a `swap` it is used and stays open: the way for a loop, whose pinned memory and files then
    serve every step. Without one, a tier of `capacity_bytes` is opened, on `disk` if directories
    are named and else in pinned host memory, and closed when no graph needs it any more.

    Raises:
        RuntimeError: Another swap is active.
        ValueError: There is neither a device nor a directory.
        PinningRefused: The host does not lock that much memory.
        DiskFailure: The directories cannot be written, or have not as much room.
    """
    if _ACTIVE.get():
        raise RuntimeError(
            "activations are being swapped already: swap_activations cannot be nested; "
            "leave the outer one first"
        )
    used = _open(disk, capacity_bytes, options) if swap is None else swap
    token = _ACTIVE.set(True)
    try:
        with used.saving():
            yield used
    finally:
        _ACTIVE.reset(token)
        if swap is None:
            used.close_when_unused()


def open_disk_swap(
    disk: Sequence[str | Path],
    *,
    capacity_bytes: int,
    depth: int = 4,
    timeout_s: float = 120.0,
    options: SwapOptions | None = None,
    device: torch.device | None = None,
) -> ActivationSwap:
    """A swap with files of its own on `disk`; raises DiskFailure."""
    tier = DiskTier(disk, capacity_bytes=capacity_bytes, depth=depth, timeout_s=timeout_s)
    pin = torch.cuda.is_available() if device is None else device.type == "cuda"
    try:
        store = DiskStore(tier, buffers=2 * depth, timeout_s=timeout_s, pin=pin, closes_tier=True)
    except BaseException:
        tier.close()
        raise
    return ActivationSwap(store, options, device=device)


def _open(
    disk: Sequence[str | Path], capacity_bytes: int, options: SwapOptions | None
) -> ActivationSwap:
    if disk:
        return open_disk_swap(disk, capacity_bytes=capacity_bytes, options=options)
    if not torch.cuda.is_available():
        raise ValueError(
            "without a device, activations are in host memory already; "
            "name directories on a local disk: swap_activations(disk=[...])"
        )
    store: ActivationStore = HostStore(capacity_bytes, pin=True)
    return ActivationSwap(store, options)
