"""Learning by rewards: asynchronous against synchronous, against TRL's GRPO, and new weights' cost.

    python benchmarks/rl.py --keep FOLDER --minutes 8 [--rounds 3] [--peers PYTHON] [--json]
    python benchmarks/rl.py --quick

A Llama of 3.2 M parameters learns two-digit addition on two cores. All runs begin with the same
supervised weights, ask the same series of questions, and take as many steps of as many answers:

- async: rl.max_staleness=--staleness, one process that trains and one that samples, a thread each;
- sync: the same with rl.max_staleness=0;
- trl: GRPOTrainer in `--ranks` processes of two threads together, in the interpreter `--peers`.

Time counts from the end of a run's first step by rewards, so nobody's start does. Accuracy is the
share of right answers among those sampled, and its level is the mean of --window steps in a row.
"Time to accuracy" is to the level --target, or else to the highest that every run of both sides
reached. Tokens are those of sampled answers per second of the run, training included.

New weights: how long sampling paused for them as a share of the step, and bytes on the wire over
bytes of the weights, from the asynchronous runs' own metrics.

With `--keep FOLDER` what was measured is kept there, and with `--minutes` no run begins later than
that: the same command again goes on, and prints what there is. --target, --window, --rounds and
--peers may differ from part to part.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness import Result, options
from kept import Kept
from rl_runs import Setting, make_start, run_braid, run_trl, why_no_trl

DEFAULTS: dict[str, int | str] = {
    "hidden": 256,
    "layers": 4,
    "digits": 2,
    "prompts": 8,
    "samples": 8,
    "new_tokens": 6,
    "start_steps": 300,
    "start_lr": "2e-3",
    "steps": 300,
    "lr": "3e-4",
    "dynamic": False,
    "ranks": 2,
    "staleness": 1,
    "rounds": 3,
    "window": 20,
    "target": "0",
    "peers": "",
    "keep": "",
    "minutes": "0",
    "quick": False,
}
QUICK = {"hidden": 64, "layers": 2, "start_steps": 60, "steps": 8}

Run = Mapping[str, Any]
"""Columns with a number per step, and `faults`."""


def clock_of(run: Run) -> list[float]:
    """Seconds from the end of the first step to that of each."""
    return [time - run["time"][0] for time in run["time"]]


def levels(run: Run, window: int) -> list[float]:
    """Mean accuracy of each `window` steps in a row."""
    values = run["accuracy"]
    ends = range(window, len(values) + 1)
    return [statistics.fmean(values[end - window : end]) for end in ends]


def seconds_to(run: Run, target: float, window: int) -> float | None:
    """When the level first was `target`; None if never."""
    times = clock_of(run)[window - 1 :]
    pairs = zip(times, levels(run, window), strict=True)
    return next((time for time, level in pairs if level >= target), None)


def common_target(runs: Sequence[Run], window: int) -> float:
    """The highest level that all of them reached."""
    return min(max(levels(run, window)) for run in runs)


def per_s(run: Run, column: str | None = None) -> float:
    """Sum of a column, or steps, per second after the first step."""
    amount = len(run["time"]) - 1 if column is None else sum(run[column][1:])
    return amount / clock_of(run)[-1]


def share(run: Run, column: str) -> float:
    """Sum of a column of seconds over that of the steps, without the first."""
    return sum(run[column][1:]) / clock_of(run)[-1]


def record_run(figures: dict[str, float], prefix: str, runs: Sequence[Run], window: int) -> None:
    """What one way did: medians over its runs."""
    found = {
        "steps_per_s": [per_s(run) for run in runs],
        "tokens_per_s": [per_s(run, "tokens") for run in runs],
        "median_step_s": [statistics.median(b - a for a, b in pairwise(r["time"])) for r in runs],
        "first_level": [levels(run, window)[0] for run in runs],
        "best_level": [max(levels(run, window)) for run in runs],
    }
    figures |= {f"{prefix}{name}": statistics.median(values) for name, values in found.items()}


def record_waits(figures: dict[str, float], prefix: str, runs: Sequence[Run]) -> None:
    """What Braid's runs say of themselves."""
    for name, column in (("trainer_wait", "trainer_wait_s"), ("rollout_wait", "rollout_wait_s")):
        values = [share(run, column) for run in runs]
        figures[f"{prefix}{name}_share"] = statistics.median(values)
    figures[f"{prefix}mean_staleness"] = statistics.median(
        statistics.fmean(run["staleness"]) for run in runs
    )
    figures[f"{prefix}faults"] = sum(run["faults"] for run in runs)


def record_pair(
    result: Result, name: str, ours: Sequence[Run], theirs: Sequence[Run], given: Any
) -> None:
    """Ratios of paired runs: of speeds ours over theirs, of times theirs over ours."""
    result.ratio(f"steps_per_s_over_{name}", [*map(per_s, ours)], [*map(per_s, theirs)])
    tokens = [[per_s(run, "tokens") for run in side] for side in (ours, theirs)]
    result.ratio(f"tokens_per_s_over_{name}", *tokens)
    target = float(given.target) or common_target([*ours, *theirs], given.window)
    result.braid[f"accuracy_against_{name}"] = target
    reached = [
        (own_s, other_s)
        for own, other in zip(ours, theirs, strict=True)
        if (own_s := seconds_to(own, target, given.window)) is not None
        and (other_s := seconds_to(other, target, given.window)) is not None
    ]
    result.braid[f"pairs_that_reached_it_against_{name}"] = len(reached)
    if not reached:
        return
    own, other = ([pair[side] for pair in reached] for side in (0, 1))
    result.braid[f"time_to_accuracy_against_{name}_s"] = statistics.median(own)
    result.peers.setdefault(name, {})["time_to_accuracy_s"] = statistics.median(other)
    result.ratio(f"time_to_accuracy_over_{name}", own, other)


def record_weights(result: Result, runs: Sequence[Run], start: Mapping[str, float]) -> None:
    """What new weights cost those who sample, and the wire."""
    result.braid["parameters"] = start["parameters"]
    for name in ("pause", "train_pause"):
        values = [share(run, f"{name}_s") for run in runs]
        result.braid[f"weights_{name}_share_of_step"] = statistics.median(values)
        result.spread[f"weights_{name}_share_of_step"] = max(values) - min(values)
    sent = [n / start["weight_bytes"] for run in runs for n in run["sent_bytes"] if n]
    if sent:
        result.braid["weights_wire_bytes_over_bytes"] = statistics.median(sent)


def measure(kept: Kept, folder: Path, setting: Setting, given: Any) -> dict[str, Any]:
    """Everything that is kept or can be measured now: `start`, and by way its runs by round."""
    start = kept.measured("start", partial(make_start, setting, folder))
    found: dict[str, Any] = {"start": start, "async": {}, "sync": {}, "trl": {}}
    reason = why_no_trl(given.peers)
    if reason is not None:
        print(f"TRL is left out: {reason}", file=sys.stderr)
    if start is None:
        return found
    for number in range(given.rounds):
        ways = {
            "async": partial(run_braid, staleness=given.staleness, seed=number),
            "sync": partial(run_braid, staleness=0, seed=number),
        }
        if reason is None:
            ways["trl"] = partial(run_trl, python=given.peers, seed=number)
        # Rotate, so that nobody always runs after the same neighbour.
        order = list(ways)
        shift = number % len(order)
        for way in order[shift:] + order[:shift]:
            run = kept.measured(f"{way}-{number}", partial(ways[way], setting, folder))
            if run is not None:
                found[way][number] = run
    return found


def sum_up(result: Result, found: Mapping[str, Any], given: Any) -> None:
    """All figures of what was measured."""
    for way in ("async", "sync", "trl"):
        runs = list(found[way].values())
        if not runs:
            continue
        figures = result.peers.setdefault("trl", {}) if way == "trl" else result.braid
        prefix = "" if way == "trl" else f"{way}_"
        record_run(figures, prefix, runs, given.window)
        if way != "trl":
            record_waits(figures, prefix, runs)
    for way in ("sync", "trl"):
        rounds = sorted(found["async"].keys() & found[way].keys())
        if rounds:
            sides = ([found[side][number] for number in rounds] for side in ("async", way))
            record_pair(result, way, *sides, given)
    if found["async"]:
        record_weights(result, list(found["async"].values()), found["start"])


def setting_of(given: Any) -> Setting:
    """What the command line says of the runs."""
    named = {field.name: vars(given)[field.name] for field in fields(Setting)}
    setting = Setting(**{**named, "lr": float(given.lr), "start_lr": float(given.start_lr)})
    return replace(setting, **QUICK) if given.quick else setting


def main() -> None:
    """Measure and print."""
    given = options(__doc__, **DEFAULTS)
    if given.quick:
        given.rounds, given.window = 1, 4
    setting = setting_of(given)
    settings = {**asdict(setting), "staleness": given.staleness}
    kept = Kept(given.keep, float(given.minutes), settings)
    result = Result(name="rl")
    with kept.place() as folder:
        sum_up(result, measure(kept, folder, setting, given), given)
    result.missing = kept.missing
    result.show(as_json=given.json)


if __name__ == "__main__":
    main()
