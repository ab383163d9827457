"""Sums of gradients between the replicas of a model, compressed where links are slow.

Guarantees, each asserted in tests/parallel/test_replicas.py:
- without compression, gradients are those of one process, in every layout that has replicas;
- where every host has several replicas of the same parameters, they are summed dense inside it, and
  compressed between hosts; replicas that all share one host are compressed as if they did not;
- the bytes counted are those foretold.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from comms.compression.config import CompressionConfig, StepChoice, steady
from comms.compression.exchange import Exchange
from comms.compression.flat import FlatGradient
from comms.compression.ring import RingOrder
from comms.compression.runner import Pending
from comms.groups import own_group
from comms.ledger import Ledger
from parallel.layout import Layout

Lines = list[tuple[int, ...]]


def exchange_lines(layout: Layout, ranks_per_host: int) -> tuple[Lines, Lines]:
    """Pure: groups of ranks that exchange compressed sums, and groups that sum dense before, inside
    hosts; none of the latter where hosts do not divide all replicas alike.

    `ranks_per_host` neighbours in rank share each host; 1 where that is not known.
    """
    lines = sorted({layout.line("replica", rank) for rank in range(layout.world_size)})
    by_host = [_by_host(line, ranks_per_host) for line in lines]
    sizes = {len(members) for hosts in by_host for members in hosts}
    # What ranks of `tp` hold alike has to travel whole, and parts of hosts' sums do not tell it.
    if len(sizes) > 1 or sizes & {1, layout.replica} or layout.tp > 1:
        return lines, []
    inside = [members for hosts in by_host for members in hosts]
    between = [place for hosts in by_host for place in zip(*hosts, strict=True)]
    return between, inside


def _by_host(line: Sequence[int], ranks_per_host: int) -> list[tuple[int, ...]]:
    hosts: dict[int, list[int]] = {}
    for rank in line:
        hosts.setdefault(rank // ranks_per_host, []).append(rank)
    return [tuple(members) for members in hosts.values()]


class Replicas:
    """The exchange of one rank with the other replicas, for all models it holds parts of."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        config: CompressionConfig,
        inside: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.exchange = exchange
        self.config = config
        self.inside = inside
        """Ranks of a host that sum dense first: each keeps state of one such part of a gradient."""

        self.flats: dict[str, FlatGradient] = {}
        """What lies in every gradient that is exchanged, by key."""

        self._step_bytes: dict[StepChoice, int] = {}
        self._clock = clock
        self._waited_s = 0.0
        self._lanes = 0

    def lane(self) -> "Lane":
        """For one model, or stage of one. All ranks ask for theirs in the same order."""
        self._lanes += 1
        return Lane(self, f"{self._lanes - 1}.")

    def choose(self, choice: StepChoice) -> None:
        """How the next step's gradients are sent; the same on all ranks."""
        self.exchange.set_method(choice)

    def order_rings(self, order: RingOrder) -> None:
        """Let messages between hosts pass them in another order from now on. All ranks call it
        alike, between two steps."""
        self.exchange.order_ring(order)

    def settle(self, *, commit: bool) -> None:
        """Keep what the step left unsent, or go back to before the step. Called once all ranks
        know whether the step counts."""
        if commit:
            self.exchange.commit()
        else:
            self.exchange.rollback()

    def step_bytes(self, choice: StepChoice) -> int:
        """Bytes that this rank sends in a step between hosts, or, where they share one, between
        replicas."""
        if choice not in self._step_bytes:
            self._step_bytes[choice] = self.exchange.step_bytes(choice, self.flats.values())
        return self._step_bytes[choice]

    def announce(self, flats: Mapping[str, FlatGradient]) -> None:
        """Say what else is exchanged, by key."""
        self.flats |= flats
        self._step_bytes.clear()

    def take_waited_s(self) -> float:
        """Seconds waited for exchanges since the last call."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def wait_for(self, pending: Pending) -> None:
        """Wait, and count it."""
        begin_s = self._clock()
        pending.wait()
        self._waited_s += self._clock() - begin_s


class Lane:
    """One model's way into the exchange, with keys of its own."""

    def __init__(self, replicas: Replicas, prefix: str) -> None:
        self._replicas = replicas
        self._prefix = prefix

    @property
    def ranks(self) -> int:
        """Ranks whose gradients are summed."""
        return self._replicas.exchange.ranks

    def start(
        self, key: str, flat: Tensor, shapes: Sequence[Sequence[int]] | None = None
    ) -> Pending:
        """As `Exchange.start`."""
        pending = self._replicas.exchange.start(self._prefix + key, flat, shapes)
        return _Counted(pending, self._replicas)

    def announce(self, flats: dict[str, FlatGradient]) -> None:
        """Say what will be exchanged under which key."""
        self._replicas.announce({self._prefix + key: flat for key, flat in flats.items()})


class _Counted:
    def __init__(self, pending: Pending, replicas: Replicas) -> None:
        self._pending = pending
        self._replicas = replicas

    def wait(self) -> None:
        self._replicas.wait_for(self._pending)


def open_replicas(
    config: CompressionConfig, layout: Layout, *, ranks_per_host: int, ledger: Ledger
) -> Replicas:
    """The exchange of this rank over groups of its own, since it runs on a thread of its own. What
    a step sends comes from `choose`. All ranks of the run call it alike."""
    between, inside = exchange_lines(layout, ranks_per_host)
    group = own_group(between)
    assert group is not None
    exchange = Exchange(
        steady(_clipping_parts(config, layout)),
        group=group,
        inside=own_group(inside) if inside else None,
        ledger=ledger,
        axis="replica",
    )
    return Replicas(exchange, config=config, inside=len(inside[0]) if inside else 1)


def _clipping_parts(config: CompressionConfig, layout: Layout) -> CompressionConfig:
    """A rank sees the norm of what it holds alone: of N equal parts, the root of N less."""
    if config.clip_norm is None:
        return config
    return replace(config, clip_norm=config.clip_norm / (layout.shard * layout.pp) ** 0.5)
