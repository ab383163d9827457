"""Plant a fault in a run of one's own recipe and see what comes of it.

The recipe runs twice in folders of their own, each as a process of its own like any `braid run`:
once undisturbed, once with the fault; a run whose sampling is disturbed has nothing to be compared
with, and runs alone. What is judged is what the runs left in their folders.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.drills.disk import FillDisk
from cluster.drills.faults import FAULTS, Fault, Target
from cluster.drills.host_faults import HOST_FAULTS, HostPair, pair_for
from cluster.drills.judge import Planted, Verdict, judge
from cluster.drills.prompts import LostSampler, PromptsVerdict, judge_prompts
from cluster.rl.state import read_state
from recipes.load import load_recipe
from recipes.tail import tail
from trainer.config import RunConfig
from trainer.errors import InfrastructureError, RecipeError
from trainer.numeric.planted import Planted as PlantedGradient
from trainer.numeric.planted import write_planted
from trainer.run_folder import RunFolder, read_lines

_POLL_S = 0.02

KILL_ROLLOUT = "kill-rollout"
"""The drill of runs by rewards: a process that samples ends at once."""

PREPARED = ("fill-disk", "nan")
"""Drills whose faults need something before the run starts."""


class WrongGradient:
    """A fault that the run plants itself, as its folder asks for it."""

    def plant(self, target: Target) -> None:
        """It was, before the run started."""

    def remove(self) -> None:
        """Nothing is left."""


@dataclass(frozen=True, kw_only=True)
class Drill:
    """What to do, and where."""

    name: str
    recipe: str
    overrides: Sequence[str]
    folder: Path
    """Holds both runs."""

    at_step: int
    """Of a run by rewards, after its supervised steps."""

    seed: int
    """Chooses the rank, or the process that samples."""

    limit_s: float
    """Longest time of one run."""

    cut_s: float = 3.0
    """How long a link is cut."""

    hosts: HostPair | None = None
    """Where both run, for a fault of hosts; None on this machine as it is."""


def drill(plan: Drill) -> tuple[Verdict | PromptsVerdict, RunFolder]:
    """Run and judge. Raises RecipeError for an unknown drill, InfrastructureError where the
    undisturbed run fails or the fault could not be planted, ResourceError where a drill of hosts
    cannot make two of them."""
    if plan.name == KILL_ROLLOUT:
        return _kill_rollout(plan)
    if plan.name in HOST_FAULTS:
        config = load_recipe(plan.recipe, plan.overrides).recipe.cluster
        with pair_for(config) as hosts:
            return _drill(replace(plan, hosts=hosts))
    known = sorted({*FAULTS, *HOST_FAULTS, *PREPARED, KILL_ROLLOUT})
    if plan.name not in known:
        raise RecipeError(f"no drill is called {plan.name}; there are {', '.join(known)}")
    return _drill(plan)


def _drill(plan: Drill) -> tuple[Verdict, RunFolder]:
    whole = _folder(plan, "undisturbed")
    code = _start(plan, "undisturbed").wait(plan.limit_s)
    if code != 0:
        raise InfrastructureError(
            f"the undisturbed run ended with code {code}; see {whole.root} and mend that first"
        )
    broken = _folder(plan, plan.name)
    planted = _disturb(plan, broken, _prepared(plan, whole, broken))
    return judge(planted, read_lines(broken.events), _losses(broken), _losses(whole)), broken


def _prepared(plan: Drill, whole: RunFolder, folder: RunFolder) -> Fault:
    """The fault, with what it needs before the run starts."""
    if plan.hosts is not None:
        return HOST_FAULTS[plan.name](plan.hosts, plan.cut_s)
    if plan.name == "nan":
        rank = _target(plan, whole, 0).rank
        gradient = PlantedGradient(step=plan.at_step + 1, rank=rank, factor="nan")
        write_planted(folder.planted, gradient)
        return WrongGradient()
    if plan.name == "fill-disk":
        disk = FillDisk()
        disk.prepare(whole, folder)
        return disk
    return FAULTS[plan.name]()


def _disturb(plan: Drill, folder: RunFolder, fault: Fault) -> Planted:
    run = _start(plan, plan.name)
    try:
        _await_step(plan, folder, run)
        target = _target(plan, folder, run.pid)
        planted = _planted(plan, folder, target)
        fault.plant(target)
        run.wait(plan.limit_s)
        if plan.name == "kill-controller":
            run = _start(plan, plan.name)
            run.wait(plan.limit_s)
    except subprocess.TimeoutExpired as error:
        raise _endless(plan, folder) from error
    finally:
        fault.remove()
        run.kill()
    return planted


def _kill_rollout(plan: Drill) -> tuple[PromptsVerdict, RunFolder]:
    """One run alone: which prompts it begins depends on how fast it samples."""
    job = load_recipe(plan.recipe, plan.overrides).recipe.job
    if not job.rl.enabled:
        raise RecipeError(
            f"{plan.recipe} has rl.enabled=false, so nothing samples in it; drill {plan.name} with "
            "a recipe that learns by rewards, such as rl_arithmetic"
        )
    plan = replace(plan, at_step=plan.at_step + job.rl.supervised_steps)
    folder = _folder(plan, plan.name)
    run = _start(plan, plan.name)
    try:
        _await_step(plan, folder, run)
        planted = _kill_sampler(plan, folder)
        code = run.wait(plan.limit_s)
    except subprocess.TimeoutExpired as error:
        raise _endless(plan, folder) from error
    finally:
        run.kill()
    state = read_state(folder)
    if code != 0 or state is None:
        raise InfrastructureError(f"the run ended with code {code}; see {folder.root}")
    verdict = judge_prompts(
        planted,
        read_lines(folder.events),
        steps=[line["step"] for line in read_lines(folder.metrics)],
        total_steps=job.train.steps,
        ledger=state["ledger"],
    )
    return verdict, folder


def _kill_sampler(plan: Drill, folder: RunFolder) -> LostSampler:
    events = read_lines(folder.events)
    lost = {event["worker"] for event in events if event["kind"] == "rollout_lost"}
    up = [e for e in events if e["kind"] == "rollout_started" and e["worker"] not in lost]
    if not up:
        raise InfrastructureError(
            f"nothing sampled in step {_last_step(folder)}, as all that did were lost before; see "
            f"{folder.root}, or give another --at-step"
        )
    chosen = random.Random(plan.seed).choice(up)
    planted = LostSampler(
        worker=chosen["worker"],
        host=chosen["host"],
        at_s=time.time(),
        step=_last_step(folder),
    )
    os.kill(chosen["process"], signal.SIGKILL)
    return planted


def _endless(plan: Drill, folder: RunFolder) -> InfrastructureError:
    return InfrastructureError(
        f"the disturbed run has not ended after {plan.limit_s:g} s; see {folder.root}"
    )


def _planted(plan: Drill, folder: RunFolder, target: Target) -> Planted:
    """A fault that comes now, or came in the step after `at_step`."""
    ended_s = {line["step"]: line["time"] for line in read_lines(folder.metrics)}
    step = plan.at_step if plan.name == "nan" else max(ended_s)
    nobody = plan.hosts is not None or plan.name in ("kill-controller", "fill-disk")
    host = target.host if plan.hosts is None else plan.hosts.names[1]
    return Planted(
        drill=plan.name,
        at_s=ended_s[step] if plan.name == "nan" else time.time(),
        step=step,
        rank=None if nobody else target.rank,
        host=None if plan.name == "fill-disk" else host,
        link=None if plan.hosts is None or plan.name == "lose-host" else plan.hosts.names,
    )


def _await_step(plan: Drill, folder: RunFolder, run: "subprocess.Popen[bytes]") -> None:
    began_s = time.monotonic()
    while _last_step(folder) < plan.at_step:
        if run.poll() is not None:
            raise InfrastructureError(
                f"the run ended before step {plan.at_step}, at which the fault was to come; see "
                f"{folder.root}, or give an earlier --at-step"
            )
        if time.monotonic() - began_s > plan.limit_s:
            raise subprocess.TimeoutExpired("braid run", plan.limit_s)
        time.sleep(_POLL_S)


def _target(plan: Drill, folder: RunFolder, driver: int) -> Target:
    started = [event for event in read_lines(folder.events) if event["kind"] == "ranks_started"]
    chosen = random.Random(plan.seed).choice(started[-1]["ranks"])
    return Target(
        rank=chosen["rank"],
        host=chosen["host"],
        process=chosen["process"],
        folder=folder,
        driver=driver,
    )


def _folder(plan: Drill, name: str) -> RunFolder:
    return RunFolder.of(RunConfig(name=name, dir=str(plan.folder)))


def _start(plan: Drill, name: str) -> "subprocess.Popen[bytes]":
    folder = _folder(plan, name)
    folder.root.mkdir(parents=True, exist_ok=True)
    words = [
        *(sys.executable, "-m", "recipes.cli", "run", plan.recipe, *plan.overrides),
        *(f"run.name={name}", f"run.dir={plan.folder}"),
        *_left_out(plan, name),
    ]
    if plan.hosts is not None:
        return plan.hosts.head.popen(
            [*words, f"cluster.address={plan.hosts.head.cluster}"], folder.root / "drill.log"
        )
    with (folder.root / "drill.log").open("ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=log)


def _left_out(plan: Drill, name: str) -> list[str]:
    """What makes both runs of a drill do without the same batch."""
    if plan.name != "nan":
        return []
    skipped = [f"numeric.skip_steps=[{plan.at_step + 1}]"] if name == "undisturbed" else []
    return ["numeric.on_nan=skip", *skipped]


def _last_step(folder: RunFolder) -> int:
    """0 before the first. Asked often: it reads the end of the metrics alone."""
    newest = tail(folder.metrics)
    return int(newest[-1]["step"]) if newest else 0


def _losses(folder: RunFolder) -> list[tuple[int, float]]:
    """Of the steps that were trained on."""
    return [
        (line["step"], line["loss"])
        for line in read_lines(folder.metrics)
        if not line.get("skipped")
    ]
