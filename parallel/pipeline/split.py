"""Pure: which layers go on which pipeline stage.

Guarantees, each asserted in tests/parallel/pipeline/test_split.py:
- every layer is on exactly one stage, in order, and no stage is empty;
- no other cut has a cheaper most expensive stage, and among the best cuts the costs are the most
  even (least sum of squares);
- the answer depends only on the arguments, so every rank agrees.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate


def split_layers(
    costs: Sequence[float], stages: int, *, first_cost: float = 0.0, last_cost: float = 0.0
) -> tuple[range, ...]:
    """Cut layers of the given costs into `stages` runs; one range of layers per stage.

    `first_cost` is what the first stage computes besides layers (the embedding), `last_cost` what
    the last one does (norm, output projection and loss), in the unit of `costs`. The number of
    layers need not be a multiple of `stages`. Raises ValueError where there are fewer layers.
    """
    if not 1 <= stages <= len(costs):
        raise ValueError(
            f"{len(costs)} layers cannot fill {stages} pipeline stages: every stage needs a layer; "
            f"lower parallel.pp or parallel.stages_per_rank to at most {len(costs)} stages in all"
        )
    before = [0.0, *accumulate(costs)]

    def stage_cost(stage: int, start: int, stop: int) -> float:
        extra = (first_cost if stage == 0 else 0.0) + (last_cost if stage == stages - 1 else 0.0)
        return before[stop] - before[start] + extra

    layers = len(costs)
    bottleneck, _ = _best_cut(layers, stages, stage_cost, max)
    limit = bottleneck * (1 + 1e-9)  # sums in another order must not rule the optimum out

    def squared(stage: int, start: int, stop: int) -> float:
        cost = stage_cost(stage, start, stop)
        return cost * cost if cost <= limit else float("inf")

    _, ends = _best_cut(layers, stages, squared, lambda total, cost: total + cost)
    return tuple(map(range, [0, *ends[:-1]], ends))


def _best_cut(
    layers: int,
    stages: int,
    cost: Callable[[int, int, int], float],
    combine: Callable[[float, float], float],
) -> tuple[float, list[int]]:
    """The least combined cost of all cuts, and the ends of the stages of such a cut."""
    history: list[dict[int, tuple[float, int]]] = []
    values = {0: 0.0}
    for stage in range(stages):
        reached: dict[int, tuple[float, int]] = {}
        for stop in range(stage + 1, layers - (stages - stage - 1) + 1):
            reached[stop] = min(
                (combine(values[start], cost(stage, start, stop)), start)
                for start in values
                if start < stop
            )
        history.append(reached)
        values = {stop: value for stop, (value, _) in reached.items()}
    ends, stop = [], layers
    for reached in reversed(history):
        ends.append(stop)
        stop = reached[stop][1]
    return values[layers], ends[::-1]
