"""How much sequence groups of mixed sizes save, and how long deciding them takes.

    python benchmarks/assignment.py [--batches 20] [--repeats 3] [--seed 0] [--json]

FlexSP's setting (arXiv 2412.01523): 64 GPUs, 512 sequences per step, lengths of Wikipedia, and the
cost constants that its authors fitted and released. Times are what those constants predict, for
our assignment and for a single degree, packed by the same code; ratios are single degree over
ours, sums over all batches. Beside them stand the ratios that the paper measured: fixed degree
over FlexSP, and the best degree of each batch over FlexSP. Single degrees are also packed plainly
(`plain`: longest first to the group with the fewest tokens, fewest rounds), as a trainer without
a planner would. `best_possible` is what the proven bound leaves over the best static degree. The
paper's other two data sets are left out, because their lengths are not at hand.

Solve times are wall-clock, the machine's load included; gaps are distances to the proven bound.
"""

import csv
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import Result, median_ratio, options

from trainer.planner.assignment.greedy import pack_all, total_s
from trainer.planner.assignment.problem import Assignment, Problem, SequenceCosts
from trainer.planner.assignment.solve import EFFORT, solve
from trainer.planner.assignment.table import tabulate

QUANTILES = Path(__file__).parent / "data" / "wikipedia_length_quantiles.csv"
RANKS, SEQUENCES = 64, 512
MEMORY_MIB = 30 * 1024
"""Of one GPU, as given to the paper's solver."""

LINK_GIB_PER_S = {2: 119.54, 4: 104.07, 8: 96.5, 16: 10.33, 32: 5.94, 64: 4.87}
"""All-to-all by degree; eight GPUs share a host. Beyond 64 the last value is kept."""

PUBLISHED = {
    "7b_192k": {"fixed": 1.72, "best_static": 6.1 / 4.7},
    "13b_192k": {"fixed": 1.59, "best_static": 10.8 / 9.0},
    "7b_384k": {"fixed": 8.3 / 5.7, "best_static": 6.2 / 5.7},
}
TIME_LIMIT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Model:
    """Constants that the paper's authors fitted on their cluster, forward and backward."""

    quadratic_ms: float
    linear_ms: float
    fixed_ms: float
    activation_mib: float
    """Of one token on one GPU."""

    width: int
    layers: int
    gi_parameters: float
    """Grows with the context, because positions are learned."""

    context: int


MODELS = {
    "7b_192k": Model(
        quadratic_ms=5.128e-6,
        linear_ms=0.1839576,
        fixed_ms=629.3563,
        activation_mib=4.480441895,
        width=4096,
        layers=32,
        gi_parameters=7.117,
        context=192 * 1024,
    ),
    "13b_192k": Model(
        quadratic_ms=9.2852e-6,
        linear_ms=0.3060189,
        fixed_ms=1132.5632,
        activation_mib=4.220439453,
        width=5120,
        layers=40,
        gi_parameters=13.116,
        context=192 * 1024,
    ),
    "7b_384k": Model(
        quadratic_ms=5.128e-6,
        linear_ms=0.1839576,
        fixed_ms=629.3563,
        activation_mib=4.480441895,
        width=4096,
        layers=32,
        gi_parameters=7.850,
        context=384 * 1024,
    ),
}


def costs_of(model: Model, ranks: int) -> SequenceCosts:
    """The model's cost: four all-to-alls per layer, forward and backward, of two bytes each."""
    exchanged_mib = 4 * 2 * model.layers * model.width * 2 / 2**20
    exchange_s_per_token = {}
    for exponent in range(1, ranks.bit_length()):
        degree = 2**exponent
        gib_per_s = LINK_GIB_PER_S.get(degree, LINK_GIB_PER_S[64])
        # MiB per GiB/s are taken as milliseconds, as the constants were fitted.
        exchange_s_per_token[degree] = exchanged_mib / degree / gib_per_s / 1e3
    return SequenceCosts(
        quadratic_s=model.quadratic_ms / 1e3,
        linear_s=model.linear_ms / 1e3,
        fixed_s=model.fixed_ms / 1e3,
        exchange_s_per_token=exchange_s_per_token,
    )


def capacity_tokens(model: Model, ranks: int) -> int:
    """Tokens beside the model states, which are sharded over all ranks (ZeRO stage 3)."""
    states_mib = model.gi_parameters * 16 * 1024 / ranks
    return int((MEMORY_MIB - states_mib) / model.activation_mib)


def draw_lengths(
    quantiles: np.ndarray, count: int, longest: int, random: np.random.Generator
) -> tuple[int, ...]:
    """Lengths of a batch; longer sequences than the context are left out, as in the paper."""
    lengths: list[int] = []
    while len(lengths) < count:
        drawn = np.interp(random.random(count), quantiles[:, 0], quantiles[:, 1])
        lengths += [int(length) for length in drawn if length <= longest]
    return tuple(lengths[:count])


def read_quantiles() -> np.ndarray:
    """Rows of (share of documents, tokens)."""
    with QUANTILES.open() as file:
        rows = csv.reader(line for line in file if not line.startswith("#"))
        return np.array([[float(cell) for cell in row] for row in rows])


def problem_of(
    model: Model, lengths: tuple[int, ...], ranks: int, degrees: tuple[int, ...] = ()
) -> Problem:
    """The paper's solver starts at degree 2; so do we where it is compared."""
    costs = costs_of(model, ranks)
    return Problem(
        lengths_tokens=lengths,
        ranks=ranks,
        capacity_tokens=capacity_tokens(model, ranks),
        costs=costs,
        degrees=degrees or tuple(costs.exchange_s_per_token),
    )


def static_s(problem: Problem, degree: int) -> float:
    """One degree for all groups; the largest where that one cannot hold the longest sequence."""
    able = max(problem.lengths_tokens) <= degree * problem.capacity_tokens
    table = tabulate(problem).only(degree if able else problem.degrees[-1])
    packing = pack_all(table, EFFORT)
    assert packing is not None
    return total_s(packing, table)


def plain_static_s(problem: Problem, degree: int) -> float:
    """One degree, longest first to the group with the fewest tokens, in the fewest rounds."""
    capacity, places = degree * problem.capacity_tokens, problem.ranks // degree
    rounds = 1
    while True:
        groups = [(0, i, 0.0) for i in range(places * rounds)]
        for length in sorted(problem.lengths_tokens, reverse=True):
            tokens, name, seconds = groups[0]
            seconds += problem.costs.sequence_s(length, degree)
            heapq.heapreplace(groups, (tokens + length, name, seconds))
        if max(tokens for tokens, _, _ in groups) <= capacity:
            break
        rounds += 1
    slowest_first = sorted((seconds for _, _, seconds in groups), reverse=True)
    return sum(slowest_first[::places]) + rounds * problem.costs.fixed_s


def best_plain_s(problem: Problem) -> float:
    """The best single degree when all are packed plainly."""
    longest = max(problem.lengths_tokens)
    able = [d for d in problem.degrees if longest <= d * problem.capacity_tokens]
    return min(plain_static_s(problem, degree) for degree in able)


def compare(result: Result, name: str, batches: Sequence[tuple[int, ...]]) -> list[Assignment]:
    """Our assignments against single degrees, in the seconds that the constants predict."""
    ours: list[Assignment] = []
    kinds = ("static_64", "static_32", "best_static", "plain_static_64", "plain_best_static")
    static: dict[str, list[float]] = {kind: [] for kind in kinds}
    with_single: list[float] = []
    for lengths in batches:
        problem = problem_of(MODELS[name], lengths, RANKS)
        answer = solve(problem, time_limit_s=TIME_LIMIT_S)
        ours.append(answer)
        static["best_static"].append(answer.best_static_s)
        static["plain_static_64"].append(plain_static_s(problem, 64))
        static["plain_best_static"].append(best_plain_s(problem))
        for degree in (32, 64):
            static[f"static_{degree}"].append(static_s(problem, degree))
        single = problem_of(MODELS[name], lengths, RANKS, (1, *problem.degrees))
        with_single.append(solve(single, time_limit_s=TIME_LIMIT_S).predicted_s)
    seconds = [answer.predicted_s for answer in ours]
    result.braid[f"{name}_step_s"] = sum(seconds) / len(seconds)
    result.braid[f"{name}_degree_1_too_step_s"] = sum(with_single) / len(with_single)
    for kind, times in static.items():
        result.peers.setdefault(kind, {})[f"{name}_step_s"] = sum(times) / len(times)
        result.ratios[f"{name}_{kind}"] = sum(times) / sum(seconds)
        result.spread[f"{name}_{kind}"] = median_ratio(times, seconds)[1]
    bounds = [answer.lower_bound_s for answer in ours]
    result.braid[f"{name}_best_possible_over_best_static"] = sum(static["best_static"]) / sum(
        bounds
    )
    for kind, ratio in PUBLISHED[name].items():
        result.peers.setdefault("flexsp_published", {})[f"{name}_{kind}"] = ratio
    return ours


def time_solver(
    result: Result, batches: Sequence[tuple[int, ...]], ranks: int, repeats: int
) -> None:
    """Median and longest wall-clock seconds of a decision, and the distance to the bound."""
    times, gaps = [], []
    for lengths in batches:
        problem = problem_of(MODELS["7b_192k"], lengths, ranks)
        for _ in range(repeats):
            started = time.perf_counter()
            answer = solve(problem, time_limit_s=TIME_LIMIT_S)
            times.append(time.perf_counter() - started)
        gaps.append(answer.gap)
    name = f"{len(batches[0])}_on_{ranks}"
    result.braid[f"{name}_solve_s"] = float(np.median(times))
    result.braid[f"{name}_solve_s_max"] = max(times)
    result.braid[f"{name}_gap"] = float(np.mean(gaps))
    result.braid[f"{name}_gap_max"] = max(gaps)


def main() -> None:
    arguments = options(__doc__, batches=20, repeats=3, seed=0)
    quantiles = read_quantiles()
    result = Result(name="assignment")
    for name, model in MODELS.items():
        random = np.random.default_rng(arguments.seed)
        batches = [
            draw_lengths(quantiles, SEQUENCES, model.context, random)
            for _ in range(arguments.batches)
        ]
        compare(result, name, batches)
    random = np.random.default_rng(arguments.seed)
    for sequences, ranks in ((SEQUENCES, RANKS), (4096, 1024)):
        batches = [
            draw_lengths(quantiles, sequences, MODELS["7b_192k"].context, random)
            for _ in range(arguments.batches)
        ]
        time_solver(result, batches, ranks, arguments.repeats)
    result.show(as_json=arguments.json)


if __name__ == "__main__":
    main()
