"""The parts of one training process, joined. `trainer/build.py` makes it; the loop drives it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from comms.config import RankEnvironment
from comms.ledger import Ledger
from trainer.assembly import Assembly
from trainer.elastic import ElasticExperts
from trainer.feed import StepFeed
from trainer.islands.exchange import Islands
from trainer.links import HostLinks
from trainer.memory_saver import MemorySaver
from trainer.metrics import Sink, StepReport
from trainer.numeric.guard import NumericGuard
from trainer.planner.protocol import Planner
from trainer.progress import Progress
from trainer.run_folder import RunFolder
from trainer.saving import Saver
from trainer.schedule import Schedule
from trainer.status import Status
from trainer.stopwatch import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended."""

    kind: str
    """`finished`: all steps are done. `stopped`: asked to, and saved. `regrouped`: asked to leave
    for another set of ranks, which goes on from memory, or from the checkpoint."""

    step: int
    """Steps of the run that are done."""

    checkpoint: str | None
    """Newest complete checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """Where news of a job goes, and where it hears whether to stop."""

    status: Status
    sinks: Sequence[Sink]
    """Called on rank 0 alone."""

    on_report: Callable[[StepReport], None]
    """Called on every rank after every step, from the training thread."""

    should_stop: Callable[[], bool]
    """Asked on every rank in every step; one yes stops all after that step."""

    host_memory_gib: Callable[[], float]

    should_regroup: Callable[[], bool] = bool
    """Asked on every rank in every step: whether another set of ranks is ready to go on. Not heard
    with several islands."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Numbers of the recipe that the loop goes by."""

    total_steps: int
    max_grad_norm: float
    bias_update_rate: float
    """Step of the router's selection bias; 0 without."""

    schedule: Schedule
    seed: int
    linear_flops_per_token: float
    """Forward and backward of a token, attention to other tokens not counted."""

    quadratic_flops: float
    """Forward and backward of attention, per squared token of a sequence."""

    rebalance_interval_steps: int
    """Steps after which experts may change ranks; 0 for never."""

    def flops(self, tokens: float, squared_tokens: float) -> float:
        """Of forward and backward over sequences with so many tokens and squared tokens in all."""
        return tokens * self.linear_flops_per_token + squared_tokens * self.quadratic_flops


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything one rank trains with."""

    environment: RankEnvironment
    folder: RunFolder
    rules: Rules
    assembly: Assembly
    progress: Progress
    planner: Planner
    feed: StepFeed
    saver: Saver
    memory: MemorySaver
    """Takes snapshots in memory."""

    numeric: NumericGuard
    """Judges every step before its update."""

    elastic: ElasticExperts | None
    """Moves experts between ranks; None where they stay."""

    islands: Islands | None
    """The other islands; None where this is all there is."""

    links: HostLinks | None
    """Between hosts; None where there is one."""

    ledger: Ledger
    stopwatch: Stopwatch
    listeners: Listeners

    def remaining_steps(self) -> Iterator[int]:
        """Numbers of the steps that are still to do, counted from 1."""
        return self.numeric.steps_left(self.rules.total_steps)

    def close(self) -> None:
        """End threads and flush what is written. Every rank calls it once."""
        self.feed.close()
        self.saver.close()
        if self.islands is not None:
            self.islands.close()
        self.memory.close()
        for sink in self.listeners.sinks:
            sink.close()
