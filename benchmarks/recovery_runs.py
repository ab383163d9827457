"""Runs of Braid with faults planted in them; used by recovery.py."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recovery_peers import WARM_STEPS, Fault, Measured

from cluster.drills.faults import SlowWorker, Target
from cluster.drills.planter import PlantedFault, Planter, RunEnded
from cluster.drills.series import PlannedFault, draw_faults, same_faults
from trainer.run_folder import RunFolder, read_lines

ROOT = Path(__file__).resolve().parent.parent
RANKS = 2
TOLD = ("worker_lost", "worker_hung", "worker_failed", "host_lost")
_POLL_S = 0.02
_STEPS_PER_FAULT = 16
_NAMED_WITHIN_STEPS = 20
_SETTLING_STEPS = 40
_ENDLESS = 1_000_000

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs of a benchmark have in common."""

    recipe: str
    seed: int
    say: Say
    """Progress."""


class BraidRun:
    """One run as a process of its own, and the faults in it."""

    def __init__(
        self, setting: Setting, folder: Path, *, spares: int, steps: int, save: int
    ) -> None:
        self.folder = RunFolder(folder / "run")
        folder.mkdir(parents=True, exist_ok=True)
        overrides = {
            "run.dir": folder,
            "run.name": "run",
            "train.steps": steps,
            "checkpoint.interval_steps": save,
            "cluster.num_workers": RANKS,
            "cluster.spares": spares,
            "recovery.max_restarts": 100_000,
        }
        words = [f"{key}={value}" for key, value in overrides.items()]
        with (folder / "driver.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "recipes.cli", "run", setting.recipe, *words],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
        self.planter = Planter(
            folder=self.folder, total_steps=steps, ended=lambda: self.process.poll() is not None
        )
        self._log = folder / "driver.log"

    def events(self, *kinds: str, after_s: float = 0.0) -> list[dict[str, Any]]:
        """Those of these kinds, told after a moment."""
        found = read_lines(self.folder.events)
        return [e for e in found if e["kind"] in kinds and e["time"] >= after_s]

    def await_event(self, *kinds: str, after_s: float, limit_s: float = 120.0) -> dict[str, Any]:
        """The first of them. Raises SystemExit where there is none in time."""
        until_s = time.monotonic() + limit_s
        while not (found := self.events(*kinds, after_s=after_s)):
            if time.monotonic() > until_s or self.process.poll() is not None:
                raise SystemExit(f"no {' or '.join(kinds)}:\n{self._log.read_text()[-4000:]}")
            time.sleep(_POLL_S)
        return found[0]

    def await_whole(self) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait()

    def end(self) -> None:
        """End it and what it started, without saving."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def braid_run(
    setting: Setting, *, spares: int, steps: int = _ENDLESS, save: int = 50
) -> Iterator[BraidRun]:
    """A run of its own in a folder of its own, ended on leaving."""
    with tempfile.TemporaryDirectory(prefix="braid-recovery-") as folder:
        run = BraidRun(setting, Path(folder), spares=spares, steps=steps, save=save)
        try:
            yield run
        except RunEnded as error:
            raise SystemExit(f"{error}:\n{run._log.read_text()[-4000:]}") from error
        finally:
            run.end()


def measure_braid(setting: Setting, fault: Fault, *, spares: int) -> Measured:
    """One fault in a run that trains."""
    kind = "kill" if fault.number == signal.SIGKILL else "stop"
    planned = PlannedFault(
        moment="training", kinds=(kind,), ranks=(1,), after_steps=WARM_STEPS, delay_s=0.0
    )
    with braid_run(setting, spares=spares) as run:
        run.planter.plant([planned])
        return _measured(run, run.planter.planted[0])


def _measured(run: BraidRun, planted: PlantedFault) -> Measured:
    told = run.await_event(*TOLD, after_s=planted.at_s)
    recovered = run.await_event("recovered", after_s=planted.at_s)
    started = run.await_event("ranks_started", after_s=planted.at_s)
    steps = [line["time"] for line in read_lines(run.folder.metrics)]
    first_s = min((at_s for at_s in steps if at_s > started["time"]), default=recovered["time"])
    return Measured(
        detected_s=told["time"] - planted.at_s,
        resumed_s=first_s - planted.at_s,
        lost_steps=int(recovered["lost_steps"]),
        whole_s=first_s - planted.at_s,
    )


def faults_in_a_row(setting: Setting, count: int) -> Mapping[str, float]:
    """Random faults in one run, against an undisturbed one."""
    steps = _STEPS_PER_FAULT * count + 50
    began_s = time.monotonic()
    losses: list[list[tuple[int, float]]] = []
    for faults in ((), draw_faults(count, ranks=RANKS, seed=setting.seed)):
        with braid_run(setting, spares=2 * bool(faults), steps=steps, save=3) as run:
            _plant(setting, run, faults)
            code = run.await_whole()
            if code:
                raise SystemExit(f"a run ended with code {code}: {run.folder.exit.read_text()}")
            losses.append([(line["step"], line["loss"]) for line in read_lines(run.folder.metrics)])
            recoveries = len(run.events("recovered"))
            lost = [event["lost_steps"] for event in run.events("recovered")]
    return {
        "faults": count,
        "steps": steps,
        "recoveries": recoveries,
        "most lost steps": max(lost),
        "losses equal bit for bit": float(losses[0] == losses[1]),
        "seconds": time.monotonic() - began_s,
    }


def _plant(setting: Setting, run: BraidRun, faults: Sequence[PlannedFault]) -> None:
    for number, fault in enumerate(faults, 1):
        run.planter.plant([fault])
        what = " and ".join(fault.kinds)
        setting.say(f"{number}/{len(faults)}: {what} of {fault.ranks}, {fault.moment}")


def kills_in_a_row(setting: Setting, count: int) -> Mapping[str, float]:
    """Kills, each after the run has recovered from the one before."""
    measured, at_once = [], 0
    with braid_run(setting, spares=1) as run:
        for number, fault in enumerate(
            same_faults(count, "kill", ranks=RANKS, seed=setting.seed), 1
        ):
            run.planter.plant([fault])
            planted = run.planter.planted[-1]
            measured.append(_measured(run, planted))
            at_once += len(run.events("ranks_started", after_s=planted.at_s)) == 1
            setting.say(f"{number}/{count}: resumed after {measured[-1].resumed_s:.2f} s")
    return {"kills": count, "recovered at the first try": at_once, **_summary(measured)}


def hangs_in_a_row(setting: Setting, count: int) -> Mapping[str, float]:
    """Stopped processes: whether rank and phase are named right."""
    measured, right = [], {"rank": 0, "phase": 0}
    with braid_run(setting, spares=1) as run:
        for number, fault in enumerate(
            same_faults(count, "stop", ranks=RANKS, seed=setting.seed), 1
        ):
            run.planter.plant([fault])
            planted = run.planter.planted[-1]
            told = run.await_event(*TOLD, after_s=planted.at_s)
            right["rank"] += told["kind"] == "worker_hung" and told["rank"] == fault.ranks[0]
            right["phase"] += told["phase"] == planted.phases[0]
            measured.append(_measured(run, planted))
            setting.say(
                f"{number}/{count}: rank {told['rank']} for {fault.ranks[0]}, "
                f"phase {told['phase']} for {planted.phases[0]}"
            )
    named = {f"{name} named right": count for name, count in right.items()}
    return {"hangs": count, **named, **_summary(measured)}


def slow_in_a_row(setting: Setting, count: int) -> Mapping[str, float]:
    """Ranks at half speed: named right within 20 steps. What is slow is told once while it
    stands, so a kill between two makes them meet anew."""
    right, after = 0, []
    with braid_run(setting, spares=1) as run:
        run.planter.await_steps(_SETTLING_STEPS)
        for number, planned in enumerate(
            same_faults(count, "kill", ranks=RANKS, seed=setting.seed), 1
        ):
            rank = planned.ranks[0]
            steps = _steps_until_named(run, rank)
            right += steps is not None and steps <= _NAMED_WITHIN_STEPS
            after += [steps] if steps is not None else []
            setting.say(f"{number}/{count}: rank {rank} named after {steps} steps")
            run.planter.plant([planned])
            run.await_event("recovered", after_s=run.planter.planted[-1].at_s)
            run.planter.await_steps(_SETTLING_STEPS)
    return {
        "slow ranks": count,
        f"named right within {_NAMED_WITHIN_STEPS} steps": right,
        "named after steps": statistics.median(after) if after else -1.0,
    }


def _steps_until_named(run: BraidRun, rank: int) -> int | None:
    """None where another one was named, or nobody within twice the steps."""
    ranks = run.events("ranks_started")[-1]["ranks"]
    fault, at_s = SlowWorker(), time.time()
    began = read_lines(run.folder.metrics)[-1]["step"]
    fault.plant(
        Target(
            rank=rank,
            host=ranks[rank]["host"],
            process=ranks[rank]["process"],
            folder=run.folder,
            driver=run.process.pid,
        )
    )
    try:
        while read_lines(run.folder.metrics)[-1]["step"] < began + 2 * _NAMED_WITHIN_STEPS:
            told = run.events("straggler", after_s=at_s)
            if told:
                return int(told[0]["step"]) - began if told[0]["rank"] == rank else None
            time.sleep(_POLL_S)
    finally:
        fault.remove()
    return None


def _summary(measured: Sequence[Measured]) -> Mapping[str, float]:
    found = {}
    for name in ("detected_s", "resumed_s", "lost_steps"):
        values = [vars(one)[name] for one in measured]
        found[name] = statistics.median(values)
        found[f"{name}, worst"] = max(values)
    return found
