"""How soon a run goes on after a fault, against torchrun elastic, Ray Train and torchft.

    python benchmarks/recovery.py [--rounds 5] [--patience 60] [--peers PYTHON] [--quick] [--json]
    python benchmarks/recovery.py --faults 100 | --kills 50 | --hangs 20 | --slow 20

Two ranks train the same model; one is killed, or stopped. Systems take turns. Peers save after
every step. `detected_s` is the time from the fault to the first sign of it, `resumed_s` to the end
of the next step, `lost_steps` how many were trained again. A peer that shows no sign of a stopped
process within `--patience` seconds is told so. `--peers` is an interpreter with `torchft` and
`ray[train]` installed; what it lacks is left out.

The other forms plant faults in one run of Braid: random ones, drawn from `--seed`, whose losses are
compared with an undisturbed run; kills, each of which has to be recovered from at the first try;
stopped processes and ranks at half speed, which have to be named right.
"""

import argparse
import signal
import statistics
import sys
import time
from collections import defaultdict

from harness import Result, options
from recovery_peers import PEERS, Fault, Measured, measure_peer, why_not
from recovery_runs import (
    Setting,
    faults_in_a_row,
    hangs_in_a_row,
    kills_in_a_row,
    measure_braid,
    slow_in_a_row,
)

SERIES = {
    "faults": faults_in_a_row,
    "kills": kills_in_a_row,
    "hangs": hangs_in_a_row,
    "slow": slow_in_a_row,
}
BRAID = {"with a spare": 1, "without a spare": 0}
FIGURES = ("detected_s", "resumed_s", "lost_steps", "whole_s")

Found = dict[tuple[str, str], list[Measured]]
"""By fault and system."""


def say(text: str) -> None:
    """Progress, apart from the figures."""
    print(text, file=sys.stderr, flush=True)


def compare(setting: Setting, given: argparse.Namespace) -> Result:
    """Rounds of one fault in each system, in turns."""
    result = Result(name="recovery")
    systems = [*BRAID]
    for peer, (_, module) in PEERS.items():
        missing = why_not(given.peers, module)
        if missing:
            say(f"{peer} is left out: {missing}")
        else:
            systems.append(peer)
    faults = [
        Fault(name="killed", number=signal.SIGKILL, patience_s=180.0),
        Fault(name="stopped", number=signal.SIGSTOP, patience_s=given.patience),
    ]
    found: Found = defaultdict(list)
    for number in range(given.rounds):
        turn = number % len(systems)
        for fault in faults:
            for system in systems[turn:] + systems[:turn]:
                began_s = time.monotonic()
                measured = measure(setting, system, fault, given)
                found[fault.name, system].append(measured)
                took_s = time.monotonic() - began_s
                say(f"round {number + 1}, {fault.name}, {system}: {measured} in {took_s:.0f} s")
    for (name, system), all_of_it in found.items():
        put(result, name, system, all_of_it, given.patience)
    for fault in faults:
        put_ratios(result, fault.name, found)
    return result


def measure(setting: Setting, system: str, fault: Fault, given: argparse.Namespace) -> Measured:
    """One fault in one system."""
    if system in BRAID:
        return measure_braid(setting, fault, spares=BRAID[system])
    return measure_peer(PEERS[system][0], given.peers, given.recipe, fault)


def put(
    result: Result, fault: str, system: str, measured: list[Measured], patience_s: float
) -> None:
    """Medians of what was measured; what did not happen has no figure."""
    figures: dict[str, float] = {}
    for name in FIGURES:
        values = [vars(one)[name] for one in measured if vars(one)[name] is not None]
        if values:
            figures[name] = statistics.median(values)
    unnoticed = sum(one.detected_s is None for one in measured)
    if unnoticed:
        figures[f"unnoticed for {patience_s:g} s, of {len(measured)}"] = unnoticed
    if system in BRAID:
        result.braid |= {f"{fault}, {system}: {k}": v for k, v in figures.items()}
    else:
        own = result.peers.setdefault(system, {})
        own |= {f"{fault}: {k}": v for k, v in figures.items()}


def put_ratios(result: Result, fault: str, found: Found) -> None:
    """Braid over each peer, where both went on in the same round."""
    for system in PEERS:
        for own in BRAID:
            pairs = [
                (mine.resumed_s, other.resumed_s)
                for mine, other in zip(found[fault, own], found[fault, system], strict=False)
                if mine.resumed_s is not None and other.resumed_s is not None
            ]
            if pairs:
                mine_s, theirs_s = zip(*pairs, strict=True)
                result.ratio(f"{fault}, {own}: resumed_s braid/{system}", mine_s, theirs_s)


def run(given: argparse.Namespace) -> Result:
    """What the command line asks for."""
    setting = Setting(recipe=given.recipe, seed=given.seed, say=say)
    chosen = {name: vars(given)[name] for name in SERIES if vars(given)[name]}
    if not chosen:
        return compare(setting, given)
    result = Result(name="recovery")
    for name, count in chosen.items():
        for figure, value in SERIES[name](setting, count).items():
            result.braid[f"{name}: {figure}"] = value
    return result


if __name__ == "__main__":
    given = options(
        __doc__,
        recipe="debug_cpu",
        rounds=5,
        patience=60,
        peers=sys.executable,
        faults=0,
        kills=0,
        hangs=0,
        slow=0,
        seed=0,
        quick=False,
    )
    if given.quick:
        given.rounds, given.patience = 1, min(given.patience, 15)
    run(given).show(as_json=given.json)
