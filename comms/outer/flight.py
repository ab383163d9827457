"""One fragment on its way: from this island's outer gradient to the next outer state.

Guarantees, each asserted in tests/comms/outer/test_diloco.py:
- all of it happens on one thread beside training, in the order of the launches;
- it writes to nothing that training or a checkpoint reads.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from comms.outer import message
from comms.outer.config import DilocoConfig
from comms.outer.fragment import Fragment, OuterState, outer_step
from comms.outer.link import IslandLink
from comms.outer.shards import parts_flat


@dataclass(frozen=True, slots=True)
class Landing:
    """What came of an exchange."""

    state: OuterState
    finite: tuple[bool, ...]
    """Which islands' outer gradients were, and so took part in the mean."""

    place: int
    """This island among them."""

    leaving: tuple[int, ...]

    @property
    def mine(self) -> bool:
        """Whether this island took part."""
        return self.finite[self.place]


@dataclass(frozen=True, slots=True)
class Flight:
    """An exchange that has begun."""

    fragment: int
    landing: "Future[Landing]"


class Pilot:
    """The thread that carries fragments, and its stream on a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outer")
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def launch(self, number: int, carry: Callable[[], Landing]) -> Flight:
        """Begin to carry fragment `number`; what the calling thread computed so far is seen."""
        ready = None
        if self._stream is not None:
            ready = torch.cuda.current_stream(self._device).record_event()

        def run() -> Landing:
            with self._on_stream(ready):
                landing = carry()
                if self._stream is not None:
                    # The training thread reads the result on a stream of its own.
                    self._stream.synchronize()
                return landing

        return Flight(number, self._thread.submit(run))

    def close(self) -> None:
        """End the thread; what is under way is finished first."""
        self._thread.shutdown()

    @contextlib.contextmanager
    def _on_stream(self, ready: "torch.cuda.Event | None") -> Iterator[None]:
        with torch.no_grad():
            if self._stream is None or ready is None:
                yield
                return
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(ready)
                yield


def carry(
    fragment: Fragment,
    gradient: Tensor,
    state: OuterState,
    link: IslandLink,
    config: DilocoConfig,
    *,
    leaving: bool,
) -> Landing:
    """Exchange an outer gradient and make the outer step.

    `gradient` is that of this rank's parts with layout `same`, and of the whole fragment with
    `own`; `state` lies on its device. Raises IslandLostError where an island is.
    """
    own = config.layout == "own"
    finite = bool(gradient.isfinite().all())
    if not own:
        finite = link.vote(finite)
    if link.meets:
        code = message.encode(
            gradient, config.wire, weight=config.weight, finite=finite, leaving=leaving
        ).cpu()
    else:
        code = torch.empty(message.message_bytes(gradient.numel(), config.wire), dtype=torch.uint8)
    rows = link.gather(code).to(gradient.device)
    mean = message.mean(rows.unbind(), gradient.numel(), config.wire)
    if mean.value is None:
        return Landing(state, mean.finite, link.place, mean.leaving)
    value = parts_flat(fragment.parameters, mean.value) if own else mean.value
    news = outer_step(state, value, lr=config.outer_lr, momentum=config.outer_momentum)
    return Landing(news, mean.finite, link.place, mean.leaving)
