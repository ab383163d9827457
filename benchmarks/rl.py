"""Learning by rewards: asynchronous against synchronous, against TRL's GRPO, and new weights' cost.

    python benchmarks/rl.py --keep FOLDER --minutes 8 [--rounds 3] [--peers PYTHON] [--json]
    python benchmarks/rl.py --quick

A Llama of 3.2 M parameters learns two-digit addition on two cores. All runs begin with the same
supervised weights, ask questions of one kind, and take as many steps of as many answers:

- stale1: rl.max_staleness=1, or every bound of `--staleness 1,2`; one process that trains and one
  that samples, a thread each;
- stale0: the same in turns;
- trl: GRPOTrainer in `--ranks` processes of two threads together, in the interpreter `--peers`.

Time counts from the end of a run's first step by rewards, so nobody's start does. Accuracy is the
share of right answers among those sampled, and its level is the mean of --window steps in a row.
"Time to accuracy" is to the level --target, or else to the highest that every run of both sides
reached. Tokens are those of sampled answers per second of the run, training included.

New weights: how long sampling paused for them as a share of the step, and bytes on the wire over
bytes of the weights, from the asynchronous runs' own metrics. TRL and the last figures stand beside
the first of --staleness.

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
    "start_steps": 600,
    "start_lr": "1e-3",
    "steps": 300,
    "lr": "3e-4",
    "dynamic": False,
    "ranks": 2,
    "staleness": "1",
    "rounds": 3,
    "window": 20,
    "target": "0",
    "peers": "",
    "keep": "",
    "minutes": "0",
    "quick": False,
}
QUICK = {"hidden": 64, "layers": 2, "digits": 1, "start_steps": 60, "steps": 12}
TRL = "trl"
STALE = "stale"
SYNCHRONOUS = f"{STALE}0"

Run = Mapping[str, Any]
"""Columns with a number per step, and `faults`."""

Found = dict[str, dict[int, Run]]
"""Runs by way and round."""


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


def record_way(result: Result, way: str, runs: Sequence[Run], window: int) -> None:
    """What one way did: medians over its runs."""
    found = {
        "steps_per_s": [per_s(run) for run in runs],
        "tokens_per_s": [per_s(run, "tokens") for run in runs],
        "median_step_s": [statistics.median(b - a for a, b in pairwise(r["time"])) for r in runs],
        "first_level": [levels(run, window)[0] for run in runs],
        "best_level": [max(levels(run, window)) for run in runs],
    }
    if way != TRL:
        found |= {
            "trainer_wait_share": [share(run, "trainer_wait_s") for run in runs],
            "rollout_wait_share": [share(run, "rollout_wait_s") for run in runs],
            "mean_staleness": [statistics.fmean(run["staleness"]) for run in runs],
            "faults": [float(run["faults"]) for run in runs],
        }
    for name, values in found.items():
        record(result, way, name, statistics.median(values))


def record(result: Result, way: str, name: str, value: float) -> None:
    """One figure of one way."""
    if way == TRL:
        result.peers.setdefault(TRL, {})[name] = value
    else:
        result.braid[f"{way}_{name}"] = value


def record_pair(
    result: Result, ways: tuple[str, str], sides: tuple[list[Run], list[Run]], given: Any
) -> None:
    """Ratios of the first way over the second, run by run."""
    pair, (ours, theirs) = "_over_".join(ways), sides
    for name, column in (("steps_per_s", None), ("tokens_per_s", "tokens")):
        speeds = ([per_s(run, column) for run in side] for side in sides)
        result.ratio(f"{pair}_{name}", *speeds)
    target = float(given.target) or common_target([*ours, *theirs], given.window)
    result.braid[f"{pair}_accuracy"] = target
    reached = [
        (own_s, other_s)
        for own, other in zip(ours, theirs, strict=True)
        if (own_s := seconds_to(own, target, given.window)) is not None
        and (other_s := seconds_to(other, target, given.window)) is not None
    ]
    result.braid[f"{pair}_pairs_that_reached_it"] = len(reached)
    if reached:
        own, other = ([times[side] for times in reached] for side in (0, 1))
        result.braid[f"{pair}_seconds_to_it"] = statistics.median(own)
        result.braid[f"{pair}_seconds_of_the_other"] = statistics.median(other)
        result.ratio(f"{pair}_time_to_accuracy", own, other)


def record_weights(
    result: Result, way: str, runs: Sequence[Run], start: Mapping[str, float]
) -> None:
    """What new weights cost those who sample, those who train, and the wire."""
    result.braid |= start
    steps_s = [clock_of(run)[-1] for run in runs]
    for name in ("pause_s", "train_pause_s"):
        pauses = [sum(run[name][1:]) for run in runs]
        result.ratio(f"{way}_weights_{name}_over_step_s", pauses, steps_s)
    sent = [statistics.median([n for n in run["sent_bytes"] if n] or [0.0]) for run in runs]
    whole = [start["weight_bytes"]] * len(runs)
    result.ratio(f"{way}_weights_wire_bytes_over_bytes", sent, whole)


def measure(kept: Kept, folder: Path, setting: Setting, given: Any) -> Found:
    """Everything that is kept or can be measured now, in turns."""
    found: Found = {way: {} for way in ways_of(given)}
    for number in range(given.rounds):
        # Rotate, so that nobody always runs after the same neighbour.
        order = list(found)
        shift = number % len(order)
        for way in order[shift:] + order[:shift]:
            if way == TRL:
                measured = partial(run_trl, setting, folder, given.peers, seed=number)
            else:
                staleness = int(way.removeprefix(STALE))
                measured = partial(run_braid, setting, folder, staleness=staleness, seed=number)
            run = kept.measured(f"{way}-{number}", measured)
            if run is not None:
                found[way][number] = run
    return found


def ways_of(given: Any) -> list[str]:
    """What is compared; says why TRL is left out where it is."""
    ways = [f"{STALE}{bound}" for bound in given.staleness.split(",")] + [SYNCHRONOUS]
    reason = why_no_trl(given.peers)
    if reason is None:
        return [*ways, TRL]
    print(f"TRL is left out: {reason}", file=sys.stderr)
    return ways


def sum_up(result: Result, found: Found, start: Mapping[str, float], given: Any) -> None:
    """All figures of what was measured."""
    first = next(iter(found))
    for way, runs in found.items():
        if runs:
            record_way(result, way, list(runs.values()), given.window)
    for way in found:
        ours, theirs = (first, TRL) if way == TRL else (way, SYNCHRONOUS)
        rounds = sorted(found[ours].keys() & found[theirs].keys())
        if rounds and way != SYNCHRONOUS:
            own, other = ([found[side][number] for number in rounds] for side in (ours, theirs))
            record_pair(result, (ours, theirs), (own, other), given)
    if found[first]:
        record_weights(result, first, list(found[first].values()), start)


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
    if setting.steps <= given.window:
        raise SystemExit(f"--window {given.window} needs more than {setting.steps} --steps.")
    result = Result(name="rl")
    kept = Kept(given.keep, float(given.minutes), asdict(setting))
    with kept.place() as folder:
        start = kept.measured("start", partial(make_start, setting, folder))
        assert start is not None, "the first measurement is always made"
        sum_up(result, measure(kept, folder, setting, given), start, given)
    result.missing = kept.missing
    result.show(as_json=given.json)


if __name__ == "__main__":
    main()
