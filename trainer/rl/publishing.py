"""New weights to the rollout workers, beside the step that comes next.

Guarantees, each asserted in tests/trainer/rl/test_publishing.py:
- workers get the weights as they were when their step was done, however soon they change;
- each element is given by one rank, whatever the layout, and replicas share the sending;
- a publication that fails is told with who failed, and training goes on without a channel until
  another is opened;
- a publication, or the opening of a channel, that waits for a worker which is gone ends when
  another channel is asked for.
"""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from comms.weights.agreement import WeightTransferError
from comms.weights.blocks import Block
from comms.weights.channel import WeightChannel, abandon
from comms.weights.meeting import Meeting
from comms.weights.plan import Member, Part
from comms.weights.transfer import Bill, Packed
from trainer.checkpoint.boxes import boxes_of
from trainer.rl.messages import ChannelPlace, FromTrainer, Published, PublishFailed
from trainer.weights import Weights

Tell = Callable[[FromTrainer], None]

_ABANDON_S = 5.0
"""For a store to be reached to end a channel in it; one that is not there has ended it."""


@dataclass(frozen=True)
class Failure:
    """Why workers have no new version."""

    reason: str
    culprits: tuple[str, ...] = ()


class Publisher:
    """This rank's side of the channel to the workers. The training thread of every rank calls each
    method alike, but for `expect`."""

    def __init__(
        self, weights: Weights, *, rank: int, host: str, deadline_s: float, tell: Tell
    ) -> None:
        """`tell` is called on rank 0 alone, from the training thread or beside it."""
        self._weights = weights
        self._rank = rank
        self._host = host
        self._deadline_s = deadline_s
        self._tell = tell
        self._expected: ChannelPlace | None = None
        self._place: ChannelPlace | None = None
        self._channel: WeightChannel | None = None
        self._transfers = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._sending: Future[Failure | None] | None = None
        self._figures: dict[str, float] = {}

    def open(self, place: ChannelPlace, version: int) -> None:
        """Meet the workers at `place` and give them the weights as they are, as `version`; nothing
        where another place is expected by now."""
        self._settle()
        self._leave()
        self._place, self._transfers = place, 0
        if self._given_up:
            return
        try:
            self._channel = WeightChannel.open(
                Meeting(
                    self._store(place, within_s=self._deadline_s),
                    self._rank,
                    place.names,
                    place.prefix,
                ),
                Member(host=self._host, gives=parts_of(given(self._weights))),
                deadline_s=self._deadline_s,
            )
        except (WeightTransferError, dist.DistError) as error:
            self._fail(version, failure_of(error, place.names), place)
            return
        self.publish(version)

    def publish(self, version: int) -> None:
        """Give the weights as they are, where a channel is open: packed now, sent meanwhile."""
        begin_s = time.perf_counter()
        self._settle()
        if self._channel is None or self._place is None or self._given_up:
            return
        packed = self._channel.pack(version, blocks_of(given(self._weights)))
        self._transfers += 1
        self._sending = self._thread.submit(self._send, self._channel, packed, self._place)
        self._figures["publish/train_pause_s"] = time.perf_counter() - begin_s

    def expect(self, place: ChannelPlace) -> None:
        """Have no one wait in the channel before any more: that of `place` will be opened. The
        thread that hears of it calls this, while the training thread may be waiting."""
        before, self._expected = self._expected, place
        if before is None:
            return
        with contextlib.suppress(dist.DistError):
            abandon(
                self._store(before, within_s=min(_ABANDON_S, self._deadline_s)),
                before.prefix,
                transfers=self._transfers if before == self._place else 0,
                reason="another channel is to be opened",
            )

    def take_figures(self) -> dict[str, float]:
        """Of the last publication; on rank 0."""
        taken, self._figures = self._figures, {}
        return taken

    def close(self) -> None:
        """Let what is under way come to its end."""
        self._thread.shutdown(wait=True)
        self._leave()

    @property
    def _given_up(self) -> bool:
        return self._place != self._expected

    def _settle(self) -> None:
        """Wait for the publication under way; without its channel where it failed."""
        if self._sending is None:
            return
        failure, self._sending = self._sending.result(), None
        if failure is not None:
            self._leave()

    def _leave(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def _send(self, channel: WeightChannel, packed: Packed, place: ChannelPlace) -> Failure | None:
        try:
            bill = channel.publish(packed.version, packed, deadline_s=self._deadline_s)
        except (WeightTransferError, dist.DistError) as error:
            failure = failure_of(error, place.names)
            self._fail(packed.version, failure, place)
            return failure
        if self._rank == 0:
            self._figures["publish/seconds"] = bill.total_s
            self._tell(published(bill, place))
        return None

    def _fail(self, version: int, failure: Failure, place: ChannelPlace) -> None:
        if self._rank == 0:
            self._tell(
                PublishFailed(
                    version=version,
                    reason=failure.reason,
                    culprits=failure.culprits,
                    prefix=place.prefix,
                )
            )

    def _store(self, place: ChannelPlace, *, within_s: float) -> dist.Store:
        return dist.TCPStore(
            place.host,
            place.port,
            is_master=False,
            timeout=timedelta(seconds=within_s),
            wait_for_workers=False,
        )


def failure_of(error: RuntimeError, names: tuple[str, ...]) -> Failure:
    """What to say of an error, with the names of those that it blames."""
    if not isinstance(error, WeightTransferError):
        return Failure(str(error))
    return Failure(str(error), tuple(names[rank] for rank in error.culprits))


def published(bill: Bill, place: ChannelPlace) -> Published:
    """What to say of a transfer."""
    return Published(
        prefix=place.prefix,
        version=bill.version,
        sent_bytes=bill.sent_bytes,
        seconds={
            "pack": bill.pack_s,
            "wire": bill.wire_s,
            "agree": bill.agree_s,
            "total": bill.total_s,
        },
    )


def given(weights: Weights) -> dict[str, Tensor]:
    """What this rank has of the decoder's weights and buffers, by their names."""
    saved = weights.state_dict().keys()
    buffers = {name: b for name, b in weights.named_buffers() if name in saved}
    return {**{name: p.detach() for name, p in weights.named_parameters()}, **buffers}


def parts_of(tensors: dict[str, Tensor]) -> dict[str, Part]:
    """Which blocks of whole tensors they are."""
    return {
        name: Part(
            shape=tuple(value.shape),
            dtype=str(value.dtype).removeprefix("torch."),
            blocks=tuple(Block(box.offsets, box.shape) for box in boxes_of(value)),
        )
        for name, value in tensors.items()
    }


def blocks_of(tensors: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """The blocks themselves, as views."""
    found = {}
    for name, value in tensors.items():
        local = value.to_local() if isinstance(value, DTensor) else value
        found[name] = [box.of(local) for box in boxes_of(value)]
    return found
