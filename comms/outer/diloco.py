"""Streaming DiLoCo (arXiv 2501.18512, algorithm 2): islands that train apart and meet in pieces.

On any model and optimizer, FSDP2's included; each rank's `island_group` holds the ranks with the
same shard on the other islands:

    outer = StreamingDiloco([dict(model.named_parameters())], group=island_group, config=config)
    loss.backward(); optimizer.step(); outer.step()

Guarantees, each asserted in tests/comms/outer/test_diloco.py:
- global parameters and outer momentum are bitwise equal on all islands after every exchange;
- `every=1, overlap_steps=0, mixing=0, wire="fp32"` with SGD outside (lr 1, no momentum) and inside
  is data parallelism, up to 2^-22 of the largest parameter per step; `every=H` is local SGD;
- an island whose outer gradient is not finite changes no other, and takes the global parameters;
- where an island is lost, the global parameters stay those of the last committed exchange, and
  what the dropped one carried goes with the fragment's next;
- bytes are counted exactly;
- a run that continues from a state dict, in mid-exchange too, equals one that went on, bitwise;
  so does one that sends again what was under way, on islands of which one is an exchange ahead.
"""

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist
from torch import Tensor

from comms.ledger import Ledger
from comms.outer import message
from comms.outer.config import DilocoConfig
from comms.outer.flight import Flight, Landing, Pilot, carry
from comms.outer.fragment import Fragment, OuterState, require_distinct
from comms.outer.link import IslandLink, IslandLostError
from comms.outer.membership import agree
from comms.outer.saved import read_state, write_state
from comms.outer.schedule import schedule_of
from comms.outer.shards import whole_flat, whole_flat_bytes, whole_numel

logger = logging.getLogger("braid")


@dataclass(frozen=True, slots=True)
class Merged:
    """An exchange that has ended."""

    fragment: int
    finite: tuple[bool, ...]
    """Per island: whether its outer gradient was finite, and so took part in the mean."""

    leaving: tuple[int, ...]
    """Places of the islands that said farewell: make a group without them and call `regroup`."""

    waited_s: float


class StreamingDiloco:
    """The outer optimizer of one rank. All ranks of all islands make it, and call `step` after
    every step of their inner optimizer.

    `fragments` names the parameters that travel together, the same on all islands; see
    `comms.outer.schedule.split_parameters`. `inside` holds the ranks of this island, where there
    are several: they then keep or drop an exchange together, and layout `own` needs it. Both groups
    carry CPU tensors and are used by nothing else. Raises ValueError where the configuration does
    not fit the fragments, or the islands not each other.
    """

    def __init__(
        self,
        fragments: Sequence[Mapping[str, Tensor]],
        *,
        group: dist.ProcessGroup | None,
        config: DilocoConfig,
        inside: dist.ProcessGroup | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._schedule = schedule_of(config, len(fragments))
        require_distinct(fragments)
        self._config = config
        self._ledger = Ledger() if ledger is None else ledger
        self._fragments = [Fragment(named) for named in fragments]
        self._pilot = Pilot(self._fragments[0].device)
        self._flight: Flight | None = None
        self._sent: Tensor | None = None
        self._known: dict[int, Landing] = {}
        self.last_finite: tuple[bool, ...] = ()
        """Of the last exchange that was merged, per island: whether it took part in the mean."""

        self._steps = self._begun = self._committed = 0
        self._leaving = False
        self.regroup(group, inside)

    def step(self) -> Merged | None:
        """Send and merge what is due. Returns the exchange that ended at this step, if any.

        Raises IslandLostError where an island was lost: the exchange is dropped, nothing else has
        changed, and training may go on alone or, after `regroup`, with those that are left.
        """
        self._steps += 1
        merged = None
        if self._flight is not None and self._schedule.merges(self._steps):
            merged = self._land()
        if self._schedule.leaves(self._steps):
            self._launch()
            if self._config.overlap_steps == 0:
                merged = self._land()
        return merged

    def finish(self) -> Merged | None:
        """Wait for the exchange under way and merge it now. All islands do, before a regroup."""
        return None if self._flight is None else self._land()

    def announce_leave(self) -> None:
        """Tell the others with the next exchange that this island leaves after it."""
        self._leaving = True

    def regroup(
        self, group: dist.ProcessGroup | None, inside: dist.ProcessGroup | None = None
    ) -> tuple[int, ...]:
        """Go on with the islands of another group, after one has left, was lost, or joins.

        All ranks of the islands of the new group call it between the same two exchanges; an island
        that joins makes its `StreamingDiloco` instead. An exchange under way is waited for, and
        dropped if it fails. All take over what the island with the most committed exchanges holds;
        returns the fragments that were taken over, whose parameters here became the global ones.
        """
        if self._flight is not None:
            try:
                self._land()
            except IslandLostError as error:
                logger.warning("%s", error)
        config, ledger = self._config, self._ledger
        self._link = IslandLink(
            config.layout, group, inside, ledger.sent, partial(ledger.recorded, beside=True)
        )
        agreed = agree(
            self._link,
            self._fragments,
            config.layout,
            fingerprint=self._fingerprint(),
            begun=self._begun,
            committed=self._committed,
        )
        self._begun, self._committed = agreed.begun, agreed.committed
        self._leaving = False
        for number in agreed.replaced:
            fragment = self._fragments[number]
            fragment.merge(fragment.state.parameters, 0.0)
        return agreed.replaced

    def message_bytes(self) -> list[int]:
        """Bytes of each fragment's message, of which a rank that meets n islands sends n - 1."""
        return [message.message_bytes(self._numel(f), self._config.wire) for f in self._fragments]

    def global_parameters(self) -> dict[str, Tensor]:
        """This rank's parts of the global parameters, fp32 in host memory; not to be written to."""
        found: dict[str, Tensor] = {}
        for fragment in self._fragments:
            found |= fragment.named(fragment.state.parameters)
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's outer state as named tensors in host memory, shaped as its parts.

        An exchange under way is waited for and its result included, not merged: ranks that do not
        save need not wait. Not copied: the next exchange may write to it.
        """
        flight = None
        if self._flight is not None and self._flight.landing.exception() is None:
            flight = self._flight.fragment, self._flight.landing.result()
        return write_state(self._fragments, self.counts, flight)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state, which is copied. The parameters are the caller's to load.

        Call it on all islands, with states of the same step; with `foretell`, of steps between
        which one exchange ended. Raises ValueError where names or shapes differ; nothing has
        changed then.
        """
        self._drop_flight()
        counts, flight = read_state(self._fragments, state)
        self._steps, self._begun, self._committed = counts
        if flight is not None:
            number, landing = flight
            self._flight = self._pilot.launch(number, lambda: landing)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Steps, exchanges begun and exchanges merged."""
        return self._steps, self._begun, self._committed

    @property
    def sent(self) -> tuple[int, Tensor] | None:
        """The fragment under way and the flat outer gradient of this rank's parts that was sent,
        to which nobody writes; with it, `resend` begins the exchange again."""
        if self._flight is None or self._sent is None:
            return None
        return self._flight.fragment, self._sent

    def kept_state(self) -> dict[str, Tensor]:
        """As `state_dict`, at once and without what is under way. Nothing of it is written to
        before the next merge."""
        return write_state(self._fragments, self.counts, None)

    def resend(self, gradient: Tensor) -> None:
        """Begin again the exchange that was under way in the state just loaded, with what was
        sent, to the same result. One that is not finite takes part without weight."""
        assert self._flight is None
        self._send(self._begun - 1, gradient.to(self._fragments[0].device))

    def foretell(self, exchange: int, state: OuterState, finite: Sequence[bool]) -> None:
        """Say what came of an exchange that has ended on another island: nothing is sent for it.
        Called after a state was loaded, before `resend` and `step`."""
        place = self._link.place
        landing = Landing(state.to(self._fragments[0].device), tuple(finite), place, ())
        self._known = {exchange: landing}

    def close(self) -> None:
        """End the thread; an exchange under way is waited for and forgotten."""
        self._drop_flight()
        self._pilot.close()

    def _launch(self) -> None:
        fragment = self._fragments[self._schedule.fragment(self._begun)]
        self._begun += 1
        self._send(self._begun - 1, fragment.gradient(fragment.state.to(fragment.device)))

    def _send(self, exchange: int, gradient: Tensor) -> None:
        config = self._config
        number = self._schedule.fragment(exchange)
        fragment = self._fragments[number]
        self._sent = gradient
        if exchange in self._known:
            landing = self._known.pop(exchange)
            self._flight = self._pilot.launch(number, lambda: landing)
            return
        state = fragment.state.to(fragment.device)
        if config.layout == "own":
            with self._link.gathering_inside(whole_flat_bytes(fragment.parameters)):
                gradient = whole_flat(fragment.parameters, gradient)
        else:
            self._link.count_vote()
        self._link.count_gather(message.message_bytes(gradient.numel(), config.wire))
        leaving, self._leaving = self._leaving, False
        job = partial(carry, fragment, gradient, state, self._link, config, leaving=leaving)
        self._flight = self._pilot.launch(number, job)

    def _land(self) -> Merged:
        assert self._flight is not None
        flight, self._flight = self._flight, None
        self._sent = None
        before_s = self._ledger.waited_s
        with self._ledger.waiting():
            error = flight.landing.exception()
        if isinstance(error, IslandLostError):
            raise IslandLostError(
                f"The exchange of fragment {flight.fragment} was dropped: {error}. The global "
                f"parameters are those of exchange {self._committed}. Make a group of the islands "
                "that are left and call regroup, or train on alone."
            ) from error
        landing = flight.landing.result()
        self._keep(flight.fragment, landing)
        waited_s = self._ledger.waited_s - before_s
        return Merged(flight.fragment, landing.finite, landing.leaving, waited_s)

    def _keep(self, number: int, landing: Landing) -> None:
        fragment = self._fragments[number]
        # Numbers that are not finite would survive any mixture.
        mixing = self._config.mixing if landing.mine else 0.0
        self.last_finite = landing.finite
        fragment.commit(landing.state)
        fragment.merge(landing.state.parameters, mixing)
        self._committed += 1

    def _drop_flight(self) -> None:
        if self._flight is not None:
            self._flight.landing.exception()
            self._flight = self._sent = None

    def _numel(self, fragment: Fragment) -> int:
        own = self._config.layout == "own"
        return whole_numel(fragment.parameters) if own else fragment.numel

    def _fingerprint(self) -> int:
        """Equal on islands that can train together."""
        config = self._config
        shapes = [
            [(name, tuple(p.shape)) for name, p in zip(f.names, f.parameters, strict=True)]
            for f in self._fragments
        ]
        sizes = [self._numel(fragment) for fragment in self._fragments]
        choices = config.wire, config.layout, config.outer_lr, config.outer_momentum
        return zlib.crc32(repr((choices, shapes, sizes)).encode())
