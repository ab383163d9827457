"""Open the tier that activations go to, and measure it.

Guarantee, asserted in tests/trainer/test_activation_setup.py: a tier that cannot be opened is a
ResourceError on every rank, before the first step.
"""

import time
from dataclasses import replace

import torch

from comms.config import RankEnvironment
from comms.groups import device_of
from offload.activations.disk_store import DiskStore
from offload.activations.engine import ActivationSwap
from offload.activations.policy import Tier
from offload.activations.records import SwapOptions
from offload.activations.rounding import RoundingBuffers
from offload.activations.stores import ActivationStore, HostStore
from offload.disk.speed import DEPTHS, measure_speed
from offload.disk.tier import STRIPE_BYTES, DiskTier
from offload.host_tensors import HostTensors
from trainer.activation_plan import ActivationWish
from trainer.activation_setup import ActivationSetup
from trainer.activations import Activations
from trainer.model.decoder import Decoder
from trainer.model.stage import DecoderStages
from trainer.planner.activations import WINDOW_BLOCKS
from trainer.together import least, on_all_ranks

PLAN_TIME_S = 0.5
"""Most that the addresses of one shape of block may take, once."""

_COPIED_BYTES = 64 << 20


def open_activations(
    setup: ActivationSetup, model: Decoder | DecoderStages, environment: RankEnvironment
) -> Activations:
    """Open what `setup` needs, and measure it. All ranks call it.

    Raises ResourceError on every rank where one cannot.
    """
    room, wish = setup.room, setup.wish
    if room is None or setup.kinds == ("keep",):
        return Activations(model, room=room)
    device = device_of(environment)
    if room.tier is None:
        swap = None
        if "selective" in setup.kinds:
            swap = _swap(HostStore(0, pin=False), setup, device)
        return Activations(model, swap=swap, room=room)
    where, num_bytes = room.tier.tier, room.tier.num_bytes
    store, rate = on_all_ranks(
        "make room for activations", lambda: _open(where, num_bytes, wish, device)
    )
    rate = least(bytes_per_s=rate)["bytes_per_s"]
    return Activations(
        model,
        tier=where,
        swap=_swap(store, setup, device),
        room=replace(room, tier=replace(room.tier, bytes_per_s=rate)),
        kept_blocks=wish.kept_blocks,
    )


def _swap(store: ActivationStore, setup: ActivationSetup, device: torch.device) -> ActivationSwap:
    assert setup.room is not None
    window_bytes = int(WINDOW_BLOCKS * setup.room.block.bytes_of(setup.tokens).total_bytes)
    options = SwapOptions(
        min_bytes=setup.wish.min_bytes,
        prefetch_bytes=window_bytes,
        max_in_flight_bytes=window_bytes,
        keep_when_full=True,
    )
    buffers = RoundingBuffers(time_limit_s=PLAN_TIME_S)
    return ActivationSwap(store, options, device=device, targets=buffers)


def _open(
    where: Tier, num_bytes: int, wish: ActivationWish, device: torch.device
) -> tuple[ActivationStore, float]:
    """The store, and its bytes per second in the slower direction."""
    pin = device.type == "cuda"
    if where == "host":
        return HostStore(num_bytes, pin=pin), _host_bytes_per_s(device)
    stripes_bytes = min(64 * STRIPE_BYTES, max(num_bytes // 2, STRIPE_BYTES))
    depths = DEPTHS if wish.disk_depth == "auto" else (wish.disk_depth,)
    speed = measure_speed(wish.disks, num_bytes=stripes_bytes, depths=depths)
    tier = DiskTier(
        wish.disks,
        capacity_bytes=num_bytes,
        depth=speed.depth,
        timeout_s=wish.disk_timeout_s,
    )
    try:
        store = DiskStore(
            tier,
            buffers=2 * speed.depth,
            timeout_s=wish.disk_timeout_s,
            pin=pin,
            closes_tier=True,
        )
    except BaseException:
        tier.close()
        raise
    return store, min(speed.read_bytes_per_s, speed.write_bytes_per_s)


def _host_bytes_per_s(device: torch.device) -> float:
    """Of copies from the device to pinned memory and back; the slower way."""
    memory = HostTensors(pin=device.type == "cuda")
    try:
        host_N = memory.zeros(_COPIED_BYTES // 4)
        device_N = torch.zeros(_COPIED_BYTES // 4, device=device)
        ways = ((host_N, device_N), (device_N, host_N))
        return _COPIED_BYTES / max(_copy_s(target, source) for target, source in ways)
    finally:
        memory.close()


def _copy_s(target_N: torch.Tensor, source_N: torch.Tensor) -> float:
    """Seconds of the faster of two copies."""
    fastest_s = float("inf")
    for _ in range(2):
        begin_s = time.perf_counter()
        target_N.copy_(source_N, non_blocking=True)
        if target_N.is_cuda or source_N.is_cuda:
            torch.cuda.synchronize()
        fastest_s = min(fastest_s, time.perf_counter() - begin_s)
    return fastest_s
