"""This rank's island among the others: what it exchanges with them, and what it hears of them.

Guarantees, each asserted in tests/invariants/test_islands.py:
- exchanging after every step, at once and in full, is data parallelism;
- a run that stops, in mid-exchange too, goes on bitwise;
- a step that is not finite on one island is skipped there alone;
- an island that is lost ends this start of the run, and is named;
- a run that is killed goes on from snapshots bitwise, in mid-exchange too.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from comms.ledger import Ledger
from comms.outer.diloco import Merged, StreamingDiloco
from comms.outer.link import IslandLostError
from comms.outer.saved import COUNTS, FLIGHT
from comms.outer.schedule import OuterSchedule
from parallel.layout import Layout
from trainer.checkpoint.share import local_part
from trainer.errors import InfrastructureError
from trainer.islands.lag import LAG_STEPS, REMEMBERED_STEPS
from trainer.islands.news import News, Newswire
from trainer.islands.pace import Advice, Pace
from trainer.islands.reports import report_of, report_record
from trainer.islands.saved import fresh_state, outer_tensors
from trainer.metrics import StepReport


@dataclass(kw_only=True)
class Islands:
    """Of one rank. All ranks of all islands call each method alike, in every step."""

    layout: Layout
    index: int
    """Which island this is, among those that go on."""

    members: tuple[int, ...]
    """The numbers of these, of all that the run began with."""

    weights: tuple[float, ...]
    """Of these: what part of every batch each has, and of the mean of outer gradients."""

    outer: StreamingDiloco
    schedule: OuterSchedule
    fragments: Sequence[Mapping[str, Parameter]]
    """This rank's parameters by name, those that travel together."""

    wire: Newswire | None
    """On the first rank of the island alone."""

    ledger: Ledger
    """Of what goes between islands, and of waiting for them."""

    bytes_per_s: float
    """Between islands, of a rank while all others send; measured at start."""

    pace: Pace
    """What the others' steps take, beside this island's."""

    first_step: int = 0
    """The step that the present exchanges began after."""

    busy_s: float = 0.0
    """What the last step took this rank, without waiting for other islands and for data."""

    advice: Advice | None = None
    """Shares of the batch that would be faster, until somebody takes note."""

    _waiting: list[StepReport] = field(default_factory=list)
    _recent: deque[dict[str, Any]] = field(
        default_factory=lambda: deque(maxlen=REMEMBERED_STEPS), init=False
    )
    _kept: tuple[int, dict[str, Tensor]] = field(default=(-1, {}), init=False)

    @property
    def number(self) -> int:
        """Of this island, among all that the run began with."""
        return self.members[self.index]

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Of all fragments."""
        return {name: p for fragment in self.fragments for name, p in fragment.items()}

    def asked(self, step: int) -> tuple[bool, bool]:
        """What the islands asked for some steps ago, to stop and to save; False on ranks that do
        not take part, which hear of it in the vote."""
        if self.wire is None:
            return False, False
        with self._reachable(step):
            return self.wire.asked(step)

    def tell(self, news: News) -> None:
        """Let the others know of this island's step."""
        if self.wire is not None:
            self.wire.tell(news)

    def exchange(self, step: int) -> Merged | None:
        """Send and merge what is due after an update; what was merged, if anything."""
        with self._reachable(step):
            return self.outer.step()

    def settle(self, report: StepReport) -> list[StepReport]:
        """Reports of steps that all islands have told of by now, oldest first."""
        waited_s = report.measured.islands_s + report.measured.data_s
        self.busy_s = report.measured.total_s - waited_s
        if self.wire is None:
            return [report]
        self._waiting.append(report)
        self._recent.append(report_record(report))
        return self._settled(report.step - LAG_STEPS)

    def settle_all(self) -> list[StepReport]:
        """Wait for what all islands tell of the steps so far; the reports not given yet."""
        return self._settled(self._waiting[-1].step) if self._waiting else []

    def sent_bytes(self) -> tuple[int, ...]:
        """What this rank sends of each fragment."""
        return tuple(n * (self.layout.island - 1) for n in self.outer.message_bytes())

    def fragment_sizes(self) -> list[int]:
        """Elements of this rank's parts of each fragment."""
        return [
            sum(local_part(parameter).numel() for parameter in fragment.values())
            for fragment in self.fragments
        ]

    def start_from(self, step: int) -> None:
        """Begin anew after `step` from the parameters as they are, equal on all islands."""
        exchanges = step // self.schedule.period
        counts = (step, exchanges, exchanges)
        self.outer.load_state_dict(fresh_state(self.parameters, counts))
        self.first_step = step

    def kept_tensors(self) -> dict[str, Tensor]:
        """This rank's outer state for a snapshot, without what is under way."""
        committed = self.outer.counts[2]
        if self._kept[0] != committed:
            state = self.outer.kept_state()
            self._kept = committed, outer_tensors(state, self.parameters, kept=True)
        return self._kept[1]

    def kept_description(self) -> dict[str, object]:
        """Of a snapshot: what its tensors do not say."""
        sent = self.outer.sent
        return {
            "schedule": schedule_record(self.schedule),
            "members": list(self.members),
            "weights": list(self.weights),
            "counts": list(self.outer.counts),
            "flight": None if sent is None else sent[0],
            "finite": list(self.outer.last_finite),
            "first_step": self.first_step,
            "news": [] if self.wire is None else [list(astuple(row)) for row in self.wire.own()],
            "reports": list(self._recent),
        }

    def reports_again(self, records: Sequence[dict[str, Any]], *, after: int) -> None:
        """Wait for news of the steps after `after` that were not reported."""
        self._recent.extend(records)
        reports = [report_of(record) for record in records]
        self._waiting = [report for report in reports if report.step > after]

    def description(self, state: dict[str, Tensor]) -> dict[str, object]:
        """Of an outer state, for a checkpoint: what its tensors do not say."""
        flight = state.get(FLIGHT)
        return {
            "schedule": schedule_record(self.schedule),
            "counts": state[COUNTS].tolist(),
            "flight": None if flight is None else flight.tolist(),
            "first_step": self.first_step,
            "members": list(self.members),
        }

    def close(self) -> None:
        """End the threads. What is under way is waited for."""
        self.outer.close()
        if self.wire is not None:
            self.wire.close()

    def _settled(self, step: int) -> list[StepReport]:
        assert self.wire is not None
        ready = [report for report in self._waiting if report.step <= step]
        self._waiting = self._waiting[len(ready) :]
        found = []
        for report in ready:
            if not self.wire.told(report.step):
                found.append(report)
                continue
            with self._reachable(report.step):
                news = self.wire.hear(report.step)
            self.advice = self.pace.hear([row.busy_s for row in news]) or self.advice
            found.append(of_all(report, news))
        return found

    @contextmanager
    def _reachable(self, step: int) -> Iterator[None]:
        try:
            yield
        except IslandLostError as error:
            size = self.layout.island_ranks
            others = ", ".join(
                f"island {number} (ranks {n * size} to {(n + 1) * size - 1})"
                for n, number in enumerate(self.members)
                if n != self.index
            )
            which = "one of " if self.layout.island > 2 else ""
            raise InfrastructureError(
                f"step {step}: island {self.number} lost {which}{others}: {error}. Start "
                "again, and the run goes on from its snapshots or its last checkpoint; with "
                "another parallel.island it goes on from what all islands agreed on"
            ) from error


def schedule_record(schedule: OuterSchedule) -> dict[str, int]:
    """For a checkpoint: what an exchange under way depends on."""
    return {
        "every": schedule.every,
        "overlap_steps": schedule.overlap_steps,
        "fragments": schedule.fragments,
    }


def of_all(report: StepReport, news: Sequence[News]) -> StepReport:
    """The report of one island with what all islands told: losses over all target tokens, the mean
    gradient norm, and whether any skipped the step."""
    # An island that has just joined tells of steps without targets.
    news = [row for row in news if row.targets]
    targets = sum(row.targets for row in news)
    losses = [row.loss_sum / row.targets for row in news]
    assert report.islands is not None
    return replace(
        report,
        loss=sum(row.loss_sum for row in news) / targets,
        aux_loss=sum(row.aux_sum for row in news) / targets,
        grad_norm=sum(row.grad_norm for row in news) / len(news),
        skipped=any(row.skipped for row in news),
        islands=replace(report.islands, loss_gap=max(losses) - min(losses)),
    )
