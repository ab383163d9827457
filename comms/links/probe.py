"""Measure latency and bandwidth between all ranks of a group, in pairs that go on side by side.

    links = measure_links(host_group)     # one rank per host: a map of hosts

A pair exchanges a few small messages, whose fastest round trip is twice the latency, and then
messages each way that grow, each sized by the one before, to one that takes a fixed time.
"""

import math
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from comms.links.map import LinkMap, map_of
from comms.links.tournament import opponent, rounds

_SMALL_BYTES = 8
_FIRST_BYTES = 1 << 15
_ROUND_TRIPS = 5

_GROWTH = 4
"""From one message to the next at most: limited links let the first bytes pass at once."""


def measure_links(
    group: dist.ProcessGroup,
    *,
    budget_s: float = 5.0,
    most_bytes: int = 1 << 26,
    clock: Callable[[], float] = time.perf_counter,
) -> LinkMap:
    """The map of a gloo group's ranks, equal on all. They all call it, with the same arguments.

    `budget_s` is shared out among the rounds, of which there are about as many as ranks; slow links
    of long latency may take more. `most_bytes` bounds a message, on links too fast for the budget.
    Raises ValueError where the budget is not above 0, RuntimeError where a rank is lost.
    """
    if not budget_s > 0 or most_bytes < _FIRST_BYTES:
        raise ValueError(
            f"budget_s={budget_s} must be above 0 and most_bytes={most_bytes} at least "
            f"{_FIRST_BYTES}; 5 and 67108864 are usual."
        )
    ranks, me = group.size(), group.rank()
    schedule = rounds(ranks)
    own_2N = torch.ones(2, ranks, dtype=torch.float64)
    for pairs in schedule:
        peer = opponent(pairs, me)
        if peer is not None:
            # Both directions and the smaller messages take their part.
            probe = _Probe(group, peer, budget_s / len(schedule) / 4, most_bytes, clock)
            own_2N[0, peer], own_2N[1, peer] = probe.measure()
        # Pairs of different rounds would share a rank's link.
        dist.barrier(group)
    all_2N = [torch.empty_like(own_2N) for _ in range(ranks)]
    dist.all_gather(all_2N, own_2N, group=group)
    return map_of([m[0].tolist() for m in all_2N], [m[1].tolist() for m in all_2N])


def next_bytes(size: int, fitting: float, most_bytes: int) -> int:
    """Size of the message after one of `size`, where `fitting` bytes would take the time there is;
    0 where that one was large enough."""
    grown = min(most_bytes, _GROWTH * size, fitting)
    return int(grown) if grown > 1.5 * size else 0


class _Probe:
    """This rank's half of one meeting. The lower rank of the pair sends first."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        peer: int,
        probe_s: float,
        most_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._group = group
        self._peer = peer
        self._probe_s = probe_s
        self._most_bytes = most_bytes
        self._clock = clock
        self._first = group.rank() < peer

    def measure(self) -> tuple[float, float]:
        """Latency and bandwidth from here to the peer."""
        latency_s = self._round_trip_s() / 2
        bytes_per_s = math.inf
        for turn in (self._first, not self._first):
            if turn:
                bytes_per_s = self._send_timed(latency_s)
            else:
                while self._answer():
                    pass
        return latency_s, bytes_per_s

    def _round_trip_s(self) -> float:
        """The fastest of a few, each begun here and there."""
        small = torch.zeros(_SMALL_BYTES, dtype=torch.uint8)
        fastest_s = math.inf
        for _ in range(_ROUND_TRIPS):
            for turn in (self._first, not self._first):
                if turn:
                    begin_s = self._clock()
                    self._send(small)
                    self._receive(small)
                    fastest_s = min(fastest_s, self._clock() - begin_s)
                else:
                    self._receive(small)
                    self._send(small)
        return fastest_s

    def _send_timed(self, latency_s: float) -> float:
        """Bytes per second of the largest message."""
        size = _FIRST_BYTES
        rate = self._rate(size, latency_s)
        while grown := next_bytes(size, rate * self._probe_s, self._most_bytes):
            size = grown
            rate = self._rate(size, latency_s)
        self._send(torch.zeros(1, dtype=torch.int64))
        return rate

    def _rate(self, size: int, latency_s: float) -> float:
        self._send(torch.tensor([size], dtype=torch.int64))
        payload = torch.zeros(size, dtype=torch.uint8)
        self._receive(torch.zeros(_SMALL_BYTES, dtype=torch.uint8))
        begin_s = self._clock()
        self._send(payload)
        self._receive(torch.zeros(_SMALL_BYTES, dtype=torch.uint8))
        took_s = self._clock() - begin_s
        # A message of next to no time says that latency is all there is.
        return size / max(took_s - 2 * latency_s, took_s / 10)

    def _answer(self) -> bool:
        """Take one message; False where there are no more."""
        size = torch.zeros(1, dtype=torch.int64)
        self._receive(size)
        if not size:
            return False
        payload = torch.empty(int(size), dtype=torch.uint8)
        ready = torch.zeros(_SMALL_BYTES, dtype=torch.uint8)
        self._send(ready)
        self._receive(payload)
        self._send(ready)
        return True

    def _send(self, tensor: Tensor) -> None:
        dist.send(tensor, group_dst=self._peer, group=self._group)

    def _receive(self, tensor: Tensor) -> None:
        dist.recv(tensor, group_src=self._peer, group=self._group)
