"""Which optimizer subgroups step where, and how long that takes. Pure.

A step has lanes that work at the same time: copies towards the device, copies away from it, the
device's arithmetic, the host's arithmetic, the disk. A subgroup on `host` is updated in host memory
where its states are; on `device` its fp32 states (12 bytes a parameter) are fetched, updated there
and flushed; on `disk` they are read into host memory, updated by the host and written back. The
model follows Deep Optimizer States (Maurya et al., Middleware 2024, arXiv 2410.21316), but any
share g of k may go to the device, where their stride stops at a half.

Guarantees, each asserted in tests/offload/test_schedule.py:
- every subgroup has exactly one place, and as many are on the device and on disk as were asked for;
- those of one place are spread evenly over the order;
- the chosen share is the fastest of all shares under the prediction, and the smaller of equals;
- with many subgroups it approaches the balance point of the rates;
- the same arguments give the same schedule, so every rank agrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

Place = Literal["host", "device", "disk"]

STATE_BYTES = 12
"""fp32 master, exp_avg and exp_avg_sq of a parameter."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the lanes do in a second, each measured while the others work."""

    host_parameters_per_s: float
    """Adam on the host."""

    device_parameters_per_s: float = 0.0
    """Adam on the device, the cast of the weights included."""

    fetch_bytes_per_s: float = 0.0
    """From pinned host memory to the device."""

    flush_bytes_per_s: float = 0.0
    """From the device to pinned host memory."""

    disk_bytes_per_s: float = 0.0
    """Read and written together, as much of each."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds of one update; the lanes overlap, so they add up to more than the total."""

    host_s: float
    fetch_s: float
    device_s: float
    flush_s: float
    disk_s: float
    total_s: float


def spread(count: int, chosen: int) -> tuple[bool, ...]:
    """`chosen` of `count` positions, as even as integers allow."""
    if not 0 <= chosen <= count:
        raise ValueError(f"can choose 0 to {count} of {count} subgroups, got {chosen}")
    return tuple((i + 1) * chosen // count > i * chosen // count for i in range(count))


def place_subgroups(count: int, *, device: int = 0, disk: int = 0) -> tuple[Place, ...]:
    """A place for each of `count` subgroups: `disk` on disk, of the rest `device` on the device."""
    on_disk = spread(count, disk)
    on_device = iter(spread(count - disk, device))
    return tuple(
        "disk" if stored else "device" if next(on_device) else "host" for stored in on_disk
    )


def predict(
    sizes: Sequence[int],
    places: Sequence[Place],
    rates: Rates,
    *,
    buffers: int = 2,
    disk_bytes_per_parameter: int = 2 * STATE_BYTES,
) -> Prediction:
    """Time of one update of subgroups of `sizes` parameters, with `buffers` on the device.

    `disk_bytes_per_parameter` counts both directions. Weights that the host updated go to the
    device as fp32, four bytes a parameter, and are cast there.
    """
    on = {p: [s for s, q in zip(sizes, places, strict=True) if q == p] for p in _PLACES}
    pipeline = _DevicePipeline(rates, buffers)
    for size in on["device"]:
        pipeline.add(size)
    has_device = rates.fetch_bytes_per_s > 0.0
    updated_by_host = sum(on["host"]) + sum(on["disk"])
    weights_s = 4 * updated_by_host / rates.fetch_bytes_per_s if has_device else 0.0
    host_s = updated_by_host / rates.host_parameters_per_s
    disk_s = _ratio(disk_bytes_per_parameter * sum(on["disk"]), rates.disk_bytes_per_s)
    last = on["disk"][-1] / rates.host_parameters_per_s if on["disk"] else 0.0
    return Prediction(
        host_s=host_s,
        fetch_s=pipeline.fetch_s + weights_s,
        device_s=pipeline.device_s,
        flush_s=pipeline.flush_s,
        disk_s=disk_s,
        total_s=max(pipeline.end_s + weights_s, host_s, disk_s + last),
    )


def choose_share(
    sizes: Sequence[int], rates: Rates, *, disk: int = 0, buffers: int = 2
) -> tuple[int, Prediction]:
    """How many of the subgroups that are not on disk the device should update, and the time."""
    options = []
    for device in range(len(sizes) - disk + 1 if rates.device_parameters_per_s > 0.0 else 1):
        places = place_subgroups(len(sizes), device=device, disk=disk)
        prediction = predict(sizes, places, rates, buffers=buffers)
        options.append((prediction.total_s, device, prediction))
    _, device, prediction = min(options, key=lambda option: option[:2])
    return device, prediction


def balance_share(rates: Rates) -> float:
    """The share at which host and copies end together, for infinitely many subgroups.

    (1 - f) / host = 12 f / fetch + 4 (1 - f) / fetch, or the same with flush if that is slower.
    """
    host_s = 1.0 / rates.host_parameters_per_s
    weights_s = 4.0 / rates.fetch_bytes_per_s
    into = (host_s - weights_s) / (host_s - weights_s + STATE_BYTES / rates.fetch_bytes_per_s)
    out = host_s / (host_s + STATE_BYTES / rates.flush_bytes_per_s)
    return max(0.0, min(into, out))


def refit(rates: Rates, seen: Rates, *, weight: float = 0.25) -> Rates:
    """Move each rate towards what a step showed; zero means that it showed nothing."""
    changes = {}
    for field in fields(Rates):
        before, now = getattr(rates, field.name), getattr(seen, field.name)
        if now > 0.0:
            changes[field.name] = now if before == 0.0 else before + weight * (now - before)
    return replace(rates, **changes)


_PLACES: tuple[Place, ...] = ("host", "device", "disk")


class _DevicePipeline:
    """Fetch, update and flush of one subgroup after the other, through a ring of buffers."""

    def __init__(self, rates: Rates, buffers: int) -> None:
        self._rates = rates
        self._buffers = buffers
        self._flushed_s: list[float] = []
        self._fetched_s = self._updated_s = 0.0
        self.fetch_s = self.device_s = self.flush_s = 0.0

    @property
    def end_s(self) -> float:
        """When the last flush ends."""
        return self._flushed_s[-1] if self._flushed_s else 0.0

    def add(self, size: int) -> None:
        state_bytes = STATE_BYTES * size
        fetch_s = _ratio(state_bytes, self._rates.fetch_bytes_per_s)
        device_s = _ratio(size, self._rates.device_parameters_per_s)
        flush_s = _ratio(state_bytes, self._rates.flush_bytes_per_s)
        ring = len(self._flushed_s) - self._buffers
        free_s = self._flushed_s[ring] if ring >= 0 else 0.0
        self._fetched_s = max(self._fetched_s, free_s) + fetch_s
        self._updated_s = max(self._updated_s, self._fetched_s) + device_s
        self._flushed_s.append(max(self.end_s, self._updated_s) + flush_s)
        self.fetch_s += fetch_s
        self.device_s += device_s
        self.flush_s += flush_s


def _ratio(amount: float, rate: float) -> float:
    if amount == 0:
        return 0.0
    if rate <= 0.0:
        raise ValueError("a lane that has work needs a measured rate, got 0; measure it first")
    return amount / rate
