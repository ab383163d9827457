"""What islands tell each other about every step, without waiting for each other.

Only the first rank of an island takes part. News of a step is listened to `LAG_STEPS` steps later,
when it has long arrived: so islands may be that far apart, and a slow link costs nothing.

Guarantees, each asserted in tests/trainer/islands/test_news.py:
- all islands hear the same, in the same step of theirs;
- what one island asks for, to stop or to save, all hear of, and a save that was asked for in
  several steps before it was made is heard once;
- whoever looks from outside sees an island wait for others only while it listens to what they have
  not told yet;
- an island that is out of reach is an IslandLostError;
- islands that go on from different steps, and tell again from one on, hear as if they never ended.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace

import torch
import torch.distributed as dist

from comms.ledger import Ledger
from comms.outer.link import IslandLostError
from trainer.islands.lag import LAG_STEPS, REMEMBERED_STEPS

NEWS_BYTES = 72
"""Of one step, to one island."""


@dataclass(frozen=True)
class News:
    """One island's step, as it is sent."""

    step: float
    loss_sum: float
    aux_sum: float
    targets: float
    grad_norm: float
    skipped: float
    stop: float
    save: float
    busy_s: float = 0.0
    """What the step before took the first rank of the island, without waiting for others."""


@dataclass(frozen=True)
class _Told:
    news: Future[tuple[News, ...]]
    token: int
    """Of the collective, in the ledger."""


class Newswire:
    """Carries news between the first ranks of all islands, on a thread of its own.

    They all tell every step, in order. `group` carries CPU tensors and is used by nothing else.
    `ledger` counts what is sent, and waiting for others.
    """

    def __init__(self, group: dist.ProcessGroup, ledger: Ledger | None = None) -> None:
        self._group = group
        self._ledger = Ledger() if ledger is None else ledger
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="news")
        self._told: dict[int, _Told] = {}
        self._own: deque[News] = deque(maxlen=REMEMBERED_STEPS)
        self._saved_at = -LAG_STEPS

    def tell(self, news: News) -> None:
        """Send this island's news of a step; returns at once."""
        self._own.append(news)
        sent_bytes = NEWS_BYTES * (self._group.size() - 1)
        token = self._ledger.begin("island", "news", sent_bytes, self._group)
        carried = self._thread.submit(self._carry, news, token)
        self._told[int(news.step)] = _Told(carried, token)

    def own(self) -> list[News]:
        """What this island told of its last steps, oldest first."""
        return list(self._own)

    def tell_again(self, rows: Sequence[News], *, first: int, heard_until: int) -> None:
        """Go on from what this island had told, which all do from step `first` on. What was asked
        for in steps up to `heard_until` has been answered, or is asked for again."""
        self._saved_at = heard_until
        for row in rows:
            if row.step >= first:
                self.tell(replace(row, stop=0.0, save=0.0))

    def told(self, step: int) -> bool:
        """Whether all islands tell of `step`, as far as this one knows."""
        return step in self._told

    def hear(self, step: int) -> tuple[News, ...]:
        """All islands' news of a step that was told, in their order; waits for it.

        Raises IslandLostError where an island is out of reach.
        """
        told = self._told[step]
        if not told.news.done():
            # Where nothing is waited for, compute of the step has not ended yet.
            with self._ledger.waiting(told.token):
                told.news.result()
        return told.news.result()

    def asked(self, step: int) -> tuple[bool, bool]:
        """Whether any island asked, `LAG_STEPS` before `step`, to stop and to save. Called in every
        step, in order; False where nothing was told then. Older news is forgotten."""
        then = step - LAG_STEPS
        if then not in self._told:
            return False, False
        rows = self.hear(then)
        for old in [told for told in self._told if told < then]:
            del self._told[old]
        save = any(row.save for row in rows) and step - self._saved_at > LAG_STEPS
        if save:
            self._saved_at = step
        return any(row.stop for row in rows), save

    def close(self) -> None:
        """End the thread, once what was told is sent."""
        self._thread.shutdown()

    def _carry(self, news: News, token: int) -> tuple[News, ...]:
        own_N = torch.tensor(astuple(news), dtype=torch.float64)
        rows_N = [torch.empty_like(own_N) for _ in range(self._group.size())]
        try:
            dist.all_gather(rows_N, own_N, group=self._group)
        except RuntimeError as error:
            raise IslandLostError("an island is out of reach") from error
        self._ledger.ended(token)
        rows = tuple(News(*row_N.tolist()) for row_N in rows_N)
        _require_same_step(rows)
        return rows


def _require_same_step(rows: Sequence[News]) -> None:
    steps = [int(row.step) for row in rows]
    if len(set(steps)) > 1:
        raise RuntimeError(f"islands tell of different steps: {steps}")
