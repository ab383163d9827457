"""Pure: in which order each rank of a pipeline runs forwards and backwards.

Guarantees, each asserted in tests/parallel/pipeline/test_schedule.py:
- every stage runs every microbatch once in each direction, in the order of the microbatches;
- ranks that follow their orders and wait for inputs never block each other, for any number of
  microbatches, also fewer than stages;
- a rank holds the activations of at most `kept` pairs of stage and microbatch at a time;
- with p ranks and v stages on each, a step is longer than its work by (p - 1)(f + b) of one rank
  under `gpipe` and `1f1b` (arXiv 2006.09503), by 1/v of that under `interleaved` (arXiv 2104.04473,
  section 2.2) from p microbatches on, and by at most p forwards of a stage under `zero_bubble`
  (arXiv 2401.10241, in the V of arXiv 2405.15362) from 2 p microbatches on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Schedule = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]


class Kind(Enum):
    """What an action computes."""

    FORWARD = "F"
    BACKWARD = "B"
    """Gradients of inputs and of weights."""

    INPUT = "I"
    """Gradients of inputs alone."""

    WEIGHT = "W"
    """Gradients of weights, from what INPUT kept."""


DURATIONS = {Kind.FORWARD: 1, Kind.BACKWARD: 2, Kind.INPUT: 1, Kind.WEIGHT: 1}
"""Relative seconds of a transformer's layers: one matrix product forward, two backward."""


@dataclass(frozen=True, slots=True)
class Action:
    """One computation of one stage on one microbatch."""

    kind: Kind
    stage: int
    microbatch: int


Orders = tuple[tuple[Action, ...], ...]
"""Per rank, its actions one after the other."""


@dataclass(frozen=True, kw_only=True)
class PipelineShape:
    """How many stages there are and which rank holds which."""

    schedule: Schedule
    ranks: int
    stages_per_rank: int = 1

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.stages_per_rank < 1:
            raise ValueError(
                f"a pipeline of {self.ranks} ranks with {self.stages_per_rank} stages each is "
                f"empty; both numbers must be positive"
            )
        wanted = {"gpipe": 1, "1f1b": 1, "zero_bubble": 2}.get(self.schedule)
        if wanted is not None and self.stages_per_rank != wanted:
            raise ValueError(
                f"schedule {self.schedule} runs {wanted} stage(s) per rank, got stages_per_rank="
                f"{self.stages_per_rank}; set it to {wanted} or choose interleaved"
            )

    @property
    def stages(self) -> int:
        """Stages in all."""
        return self.ranks * self.stages_per_rank

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of inputs and of weights are separate actions."""
        return self.schedule == "zero_bubble"

    def rank_of(self, stage: int) -> int:
        """The rank that holds `stage`.

        Stages go round the ranks, except for `zero_bubble`: there they go down and up again (a V),
        so that the rank of the first stage, which is free first, holds the last one, too.
        """
        lap, place = divmod(stage, self.ranks)
        return self.ranks - 1 - place if self.splits_backward and lap else place

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages of `rank`, ascending."""
        return tuple(s for s in range(self.stages) if self.rank_of(s) == rank)

    def kept(self, rank: int, microbatches: int) -> int:
        """Most pairs of stage and microbatch whose activations `rank` holds at a time."""
        most = 3 * self.ranks if self.splits_backward else self.ahead(rank, microbatches) + 1
        return min(microbatches * self.stages_per_rank, most)

    def ahead(self, rank: int, microbatches: int) -> int:
        """Forwards that `rank` runs before it starts to alternate with backwards."""
        if self.schedule == "gpipe":
            return microbatches
        below = self.ranks - 1 - rank
        if self.stages_per_rank == 1:
            return below
        return 2 * below + (self.stages_per_rank - 1) * max(_laps(self.ranks, microbatches))


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The orders of all ranks, and how long they would take in units of `DURATIONS`."""

    orders: Orders
    span: int
    """From the first start to the last end."""

    @property
    def idle_share(self) -> float:
        """Share of the ranks' time that is idle: the bubble."""
        busy = sum(DURATIONS[action.kind] for order in self.orders for action in order)
        return 1.0 - busy / (self.span * len(self.orders))


def forward_orders(shape: PipelineShape, microbatches: int) -> Orders:
    """Forwards alone, for evaluation."""
    return tuple(
        tuple(
            Action(Kind.FORWARD, stage, microbatch)
            for microbatch in range(microbatches)
            for stage in shape.stages_of(rank)
        )
        for rank in range(shape.ranks)
    )


def plan_timeline(shape: PipelineShape, microbatches: int) -> Timeline:
    """The orders of a training step. Raises ValueError without microbatches."""
    if microbatches < 1:
        raise ValueError("a pipeline needs at least one microbatch per step, got none")
    if shape.splits_backward:
        orders = _Greedy(shape, microbatches).run()
    else:
        orders = tuple(_alternating(shape, rank, microbatches) for rank in range(shape.ranks))
    return Timeline(orders=orders, span=replay(shape, orders))


def replay(shape: PipelineShape, orders: Orders) -> int:
    """Time until ranks that follow `orders`, and wait for inputs, are done.

    Raises ValueError where they would wait for each other forever.
    """
    ends: dict[Action, int] = {}
    times, places = [0] * shape.ranks, [0] * shape.ranks
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while places[rank] < len(order):
                action = order[places[rank]]
                source = source_of(shape, action)
                if source is not None and source not in ends:
                    break
                start = max(times[rank], 0 if source is None else ends[source])
                times[rank] = ends[action] = start + DURATIONS[action.kind]
                places[rank] += 1
                moved = True
    if any(place < len(order) for place, order in zip(places, orders, strict=True)):
        raise ValueError(f"these orders of a {shape.schedule} pipeline wait for each other forever")
    return max(times)


def source_of(shape: PipelineShape, action: Action) -> Action | None:
    """The action of another stage whose result `action` waits for."""
    stage, microbatch = action.stage, action.microbatch
    if action.kind is Kind.FORWARD and stage > 0:
        return Action(Kind.FORWARD, stage - 1, microbatch)
    if action.kind in (Kind.BACKWARD, Kind.INPUT) and stage < shape.stages - 1:
        return Action(action.kind, stage + 1, microbatch)
    return None


def arrivals(shape: PipelineShape, orders: Orders, rank: int) -> dict[int, tuple[Action, ...]]:
    """Per other rank: its actions whose results `rank` needs, in the order they are sent."""
    needed = {source_of(shape, action) for action in orders[rank]}
    return {
        peer: tuple(action for action in order if action in needed)
        for peer, order in enumerate(orders)
        if peer != rank
    }


def _laps(ranks: int, microbatches: int) -> list[int]:
    """Microbatches that go through all stages together: as many as ranks, or a few more."""
    number = max(1, microbatches // ranks)
    return [len(range(i, microbatches, number)) for i in range(number)]


def _alternating(shape: PipelineShape, rank: int, microbatches: int) -> tuple[Action, ...]:
    """Some forwards ahead, then a forward and a backward in turn, then the backwards left over."""
    stages = shape.stages_of(rank)
    forwards, backwards = [], []
    start = 0
    for size in _laps(shape.ranks, microbatches):
        lap = range(start, start + size)
        forwards += [Action(Kind.FORWARD, s, m) for s in stages for m in lap]
        backwards += [Action(Kind.BACKWARD, s, m) for s in reversed(stages) for m in lap]
        start += size
    ahead = min(len(forwards), shape.ahead(rank, microbatches))
    order = forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        order += [forward, backward]
    return tuple(order + backwards[len(forwards) - ahead :])


class _Greedy:
    """Ranks that take the most urgent action whose inputs are there, tick by tick.

    Backward goes before forward and deeper stages before shallower ones; weight gradients, which
    nobody waits for, fill what would be idle time.
    """

    def __init__(self, shape: PipelineShape, microbatches: int) -> None:
        self._shape = shape
        self._microbatches = microbatches
        self._deepest_first = [shape.stages_of(rank)[::-1] for rank in range(shape.ranks)]
        self._ends: dict[Kind, list[list[int]]] = {
            kind: [[] for _ in range(shape.stages)] for kind in Kind
        }
        """Per kind and stage: when each microbatch, in order, is done."""

    def run(self) -> Orders:
        orders: list[list[Action]] = [[] for _ in range(self._shape.ranks)]
        free_at = [0] * self._shape.ranks
        missing, now = 3 * self._microbatches * self._shape.stages, 0
        while missing:
            for rank, order in enumerate(orders):
                action = self._choose(rank, now) if free_at[rank] <= now else None
                if action is not None:
                    free_at[rank] = now + DURATIONS[action.kind]
                    self._ends[action.kind][action.stage].append(free_at[rank])
                    order.append(action)
                    missing -= 1
            now += 1
        return tuple(map(tuple, orders))

    def _choose(self, rank: int, now: int) -> Action | None:
        for kind in (Kind.INPUT, Kind.FORWARD, Kind.WEIGHT):
            for stage in self._deepest_first[rank]:
                action = Action(kind, stage, len(self._ends[kind][stage]))
                if self._ready(action, now) and self._admitted(rank, action):
                    return action
        return None

    def _ready(self, action: Action, now: int) -> bool:
        if action.microbatch == self._microbatches:
            return False
        source = source_of(self._shape, action)
        after = {Kind.INPUT: Kind.FORWARD, Kind.WEIGHT: Kind.INPUT}.get(action.kind)
        needs = [] if source is None else [source]
        if after is not None:
            needs.append(Action(after, action.stage, action.microbatch))
        return all(self._done(need, now) for need in needs)

    def _done(self, action: Action, now: int) -> bool:
        ends = self._ends[action.kind][action.stage]
        return action.microbatch < len(ends) and ends[action.microbatch] <= now

    def _admitted(self, rank: int, action: Action) -> bool:
        """Only new microbatches are held back: those inside must be able to leave."""
        stages = self._deepest_first[rank]
        if action.kind is not Kind.FORWARD or action.stage != stages[-1]:
            return True
        forwards, weights = self._ends[Kind.FORWARD], self._ends[Kind.WEIGHT]
        held = sum(len(forwards[stage]) - len(weights[stage]) for stage in stages)
        return held < 2 * self._shape.ranks


def most_held(order: Sequence[Action]) -> int:
    """Most pairs of stage and microbatch whose activations an order holds at a time."""
    held, most = 0, 0
    for action in order:
        held += (action.kind is Kind.FORWARD) - (action.kind in (Kind.BACKWARD, Kind.WEIGHT))
        most = max(most, held)
    return most
