"""Faults planted in simulated runs, each of another seed: another rank, another moment, other
noise."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.evidence import ProcessState
from cluster.watchdog.finding import Finding
from cluster.watchdog.watch import Watchdog
from tests.cluster.watchdog.load import Load
from tests.cluster.watchdog.setting import HOSTS, Fault, Setting
from tests.cluster.watchdog.simulation import Simulation

RUNS = 20
ENOUGH = 19
"""Runs in which the fault has to be found in time, with the right rank."""

BEGIN_S = 45.0
GIVE_UP_S = 60.0


@dataclass(frozen=True)
class Caught:
    """What the watchdog said first."""

    finding: Finding
    after_s: float
    after_steps: int
    median_step_s: float

    @property
    def in_time(self) -> bool:
        return self.after_s <= max(3.0, 5 * self.median_step_s)


def caught(
    fault: Fault, seed: int, step_s: float, save_every: int = 10**6, load: Load | None = None
) -> Caught | None:
    """The first thing said in a run with this fault; None if nothing is."""
    setting = Setting(
        seed=seed,
        step_s=step_s,
        warm_up_s=4.0,
        save_every=save_every,
        change_at=10**6,
        fault=fault,
        load=load,
    )
    simulation, watchdog = Simulation(setting), Watchdog(WatchdogConfig())
    median_s = 0.0
    for evidence in simulation.observe(fault.at_s + 4 * GIVE_UP_S):
        finding = watchdog.observe(evidence)
        if finding is None:
            median_s = watchdog.deadlines.steps_s / WatchdogConfig().stuck_steps
            continue
        steps = max(seen.reading.step for seen in evidence.ranks.values() if seen.reading)
        since_s = min(simulation.stuck_s, evidence.now_s)
        since_s = since_s if since_s < evidence.now_s else fault.at_s
        return Caught(finding, evidence.now_s - since_s, steps - simulation.onset_step, median_s)
    return None


def hits(
    right: Callable[[Fault, Caught], bool],
    *,
    kind: str,
    step_s: float = 0.8,
    phases: tuple[str, ...] = ("",),
    process: ProcessState = "sleeping",
    factor: float = 1.0,
    save_every: int = 10**6,
    load: Load | None = None,
) -> int:
    """In how many runs the first finding is the right one."""
    number = 0
    for seed in range(RUNS):
        chance = random.Random(seed)
        fault = Fault(
            kind=kind,
            at_s=chance.uniform(BEGIN_S, BEGIN_S + 15),
            rank=chance.randrange(4),
            phase=chance.choice(phases),
            process=process,
            factor=factor,
        )
        found = caught(fault, seed, step_s, save_every, load)
        number += found is not None and right(fault, found)
    return number


def named(kind: str, cause: str) -> Callable[[Fault, Caught], bool]:
    """Whether rank, host, kind and cause are right, in time."""

    def right(fault: Fault, found: Caught) -> bool:
        finding = found.finding
        rank = (finding.rank, finding.host) == (fault.rank, HOSTS[fault.rank])
        return rank and (finding.kind, finding.cause) == (kind, cause) and found.in_time

    return right


def in_20_steps(right: Callable[[Fault, Caught], bool]) -> Callable[[Fault, Caught], bool]:
    """The same, and within 20 steps."""
    return lambda fault, found: right(fault, found) and found.after_steps <= 20
