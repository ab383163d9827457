"""Has every host's snapshots copied to another host's memory, every so many steps.

One step at a time: it is announced to the ranks, which keep it in slots of its own; when it is
done, each keeper brings the shares of the hosts that it keeps for; when all have come, that step is
what a lost host costs at most. Nothing here waits: `step` looks what has come, and asks on.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.keeper import Brought, Keeper
from cluster.reading import Place
from cluster.recovery.replicas import Pace, whole_generation
from cluster.run import Run
from trainer.islands.lag import REMEMBERED_STEPS
from trainer.keeping.config import KeepingConfig
from trainer.keeping.folder import run_folder_in_memory
from trainer.keeping.partners import wards
from trainer.run_folder import append_event

_THREADS = 4
"""Of a keeper: it gives blocks and brings some at the same time."""

_REST = 2.0
"""Pauses between blocks, times their length: a link is left alone for most of a copy, too."""

_RECENT_STEPS = 20
_LIMIT_S = 3600.0
_RESTARTS = 3
_TELL_AFTER = 3
"""Failures in a row that are worth a word."""


@dataclass(kw_only=True)
class _Copy:
    """One step on its way."""

    step: int
    began_s: float = 0.0
    asked: "Sequence[ray.ObjectRef[Any]]" = ()


class Replicas:
    """Used by the driver's main thread. Ended by `close`."""

    def __init__(
        self,
        config: KeepingConfig,
        *,
        share: float,
        islands: bool,
        folder: Path,
        events: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Links carry copies for `share` of the time; `folder` is that of the run's shares.
        `islands` says whether the run began with several."""
        self._config = config
        self._ever_islands = islands
        self._folder = folder
        self._events = events
        self._clock = clock
        self._pace = Pace(share=share)
        self._keepers: dict[str, Any] = {}
        self._wards: Mapping[str, Sequence[str]] = {}
        self._steps_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._islands = 1
        self._copy: _Copy | None = None
        self._settling: list[ray.ObjectRef[Any]] = []
        self._told = False

    def begin(self, places: Sequence[Place], *, islands: int = 1) -> None:
        """Ranks are put together on these hosts, as so many islands; copies under way are
        dropped."""
        nodes = [place.node_id for place in places]
        copies = self._config.replicas_over(len(set(nodes)), islands=self._ever_islands)
        self._islands = islands
        # By node: two hosts may have the same name.
        self._wards = wards(nodes, copies) if copies > 0 else {}
        for node in list(self._keepers):
            if node not in self._wards:
                ray.kill(self._keepers.pop(node), no_restart=True)
        for node in self._wards:
            if node not in self._keepers:
                self._keepers[node] = self._start(node)
        self._copy, self._settling = None, []
        self._steps_s.clear()
        self._told = False

    def step(self, record: Mapping[str, Any]) -> None:
        """A step was reported; see what there is to do."""
        self._steps_s.append(float(record["step_s"]))
        if not self._wards:
            return
        step = int(record["step"])
        if self._settled() and self._copy is None:
            self._announce(step)
        elif self._copy is None:
            return
        elif self._copy.asked:
            self._look()
        elif step > self._copy.step:
            # The step behind it was voted on, so it is whole on every host that kept it.
            self._bring(self._copy)

    def close(self, *, clean: bool) -> None:
        """End all keepers; `clean` deletes what they and the ranks kept."""
        if clean and self._keepers:
            refs = [keeper.clean.remote() for keeper in self._keepers.values()]
            ray.wait(refs, num_returns=len(refs), timeout=2.0)
        for keeper in self._keepers.values():
            ray.kill(keeper, no_restart=True)
        self._keepers.clear()
        self._wards = {}

    def _start(self, node: str) -> Any:
        return (
            ray.remote(max_restarts=_RESTARTS)(Keeper)
            .options(
                num_cpus=0,
                max_concurrency=_THREADS,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(str(self._folder))
        )

    def _announce(self, step: int) -> None:
        # What is heard of islands is some steps old, and another one may be further.
        ahead = REMEMBERED_STEPS if self._ever_islands else 0
        wanted = self._pace.next_step(
            step=step + ahead,
            now_s=self._clock(),
            steps_s=self._steps_s,
            every=self._config.every_steps,
        )
        self._copy = _Copy(step=wanted)
        for keeper in self._keepers.values():
            keeper.hold.remote(wanted)

    def _settled(self) -> bool:
        """Whether every host knows which step is kept: only then may another one be wanted."""
        if self._settling:
            _, self._settling = ray.wait(self._settling, num_returns=len(self._settling), timeout=0)
        return not self._settling

    def _bring(self, copy: _Copy) -> None:
        copy.began_s = self._clock()
        copy.asked = [
            self._keepers[node].bring.remote(
                copy.step, [self._keepers[ward] for ward in others], _REST
            )
            for node, others in self._wards.items()
        ]

    def _look(self) -> None:
        copy = self._copy
        assert copy is not None
        asked = list(copy.asked)
        done, missing = ray.wait(asked, num_returns=len(asked), timeout=0)
        if missing and self._clock() - copy.began_s < _LIMIT_S:
            return
        self._copy = None
        try:
            brought: list[Brought] = ray.get(done)
        except RayError:
            # A host that is gone is found by others, and the next ranks begin anew.
            self._pace.failed(self._clock(), 0.0)
            return
        self._judge(copy, brought)

    def _judge(self, copy: _Copy, brought: Sequence[Brought]) -> None:
        seconds = max((one.seconds for one in brought), default=0.0)
        shares = [(found.part, found.header) for one in brought for found in one.shares]
        generation = whole_generation(shares, step=copy.step, islands=self._islands)
        if generation is None:
            self._pace.failed(self._clock(), seconds)
            problems = sorted({one.problem for one in brought if one.problem})
            if shares or problems:  # Ranks that keep nothing say so themselves.
                self._tell_failure(copy.step, problems)
            return
        self._pace.copied(copy.began_s, seconds)
        self._settling = [
            keeper.settle.remote(copy.step, generation) for keeper in self._keepers.values()
        ]
        if not self._told:
            self._told = True
            append_event(
                self._events,
                now_s=time.time(),
                kind="replica_kept",
                step=copy.step,
                seconds=seconds,
                bytes=sum(one.num_bytes for one in brought),
                hosts=len(brought),
            )

    def _tell_failure(self, step: int, problems: Sequence[str]) -> None:
        if self._pace.failures != _TELL_AFTER:
            return
        why = "; ".join(problems) or "some ranks did not keep the step that was asked for"
        append_event(
            self._events,
            now_s=time.time(),
            kind="replicas_behind",
            step=step,
            cause=f"copies of snapshots on other hosts failed {_TELL_AFTER} times: {why}",
        )


def open_replicas(run: Run, *, share: float) -> Replicas:
    """Of the run's own shares."""
    keep, root = run.job.keep, run.folder.root
    return Replicas(
        keep,
        share=share,
        islands=run.job.parallel.island > 1,
        folder=run_folder_in_memory(keep.dir, name=root.name, run_root=root),
        events=run.folder.events,
    )
