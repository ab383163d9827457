"""Watch the ranks of one generation from outside, and act on what the watchdog finds."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.agents import Agents
from cluster.failure import Failure
from cluster.host_agent import Target
from cluster.rank import RankSpec
from cluster.reading import Place, Reading
from cluster.view import RunView
from cluster.watchdog.evidence import ClusterEvidence, HostMemory, LossPoint, RankEvidence
from cluster.watchdog.finding import Finding
from cluster.watchdog.silences import Silences
from cluster.watchdog.stacks import sentences
from cluster.watchdog.told import Told
from cluster.watchdog.watch import Watchdog
from trainer.errors import ExitCode
from trainer.run_folder import append_event
from trainer.spread import stage_by_rank

_HEALING_S = 20.0
"""What may pass by itself, and blames no single rank, is given this long."""

_STACKS_S = 1.5
"""Longest time to look at the stacks of ranks that hang; they are ended after it."""

_EVENTS = {
    "slow-compute": "straggler",
    "slow-data": "straggler",
    "slow-link": "link_slow",
    "slow-sender": "link_slow",
    "slow-receiver": "link_slow",
    "slow-endpoint": "link_slow",
    "slow-communication": "link_slow",
    "loss-jump": "loss_spike",
    "not-finite": "loss_not_finite",
    "memory-slope": "memory_slope",
}


@dataclass(frozen=True, kw_only=True)
class WatchedRank:
    """Where to look for one rank."""

    place: Place
    process: int
    """Its number on its host."""

    board: str
    """File in which it tells what it does."""

    role: str
    """Equal for ranks that do the same work in a step."""


class Watching:
    """Observes when polled, a few times a second. Used by the driver's main thread."""

    def __init__(
        self,
        watchdog: Watchdog,
        agents: Agents,
        *,
        ranks: Sequence[WatchedRank],
        view: RunView,
        events: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watchdog = watchdog
        self._agents = agents
        self._ranks = {own.place.rank: own for own in ranks}
        self._view = view
        self._events = events
        self._clock = clock
        self._targets = _by_node(ranks)
        agents.open(list(self._targets))
        self._seen: dict[int, RankEvidence] = {}
        self._heard_s = dict.fromkeys(self._ranks, clock())
        self._silences = Silences()
        self._losses: list[LossPoint] = []
        self._memory: dict[str, HostMemory] = {}
        self._step = 0
        self._told = Told()
        self._ended: set[int] = set()

    def step(self, record: Mapping[str, Any]) -> None:
        """A step was reported."""
        self._step = record["step"]
        self._losses.append(
            LossPoint(step=record["step"], loss=record["loss"], grad_norm=record["grad_norm"])
        )

    def memory(self, reading: Reading) -> None:
        """A rank told how much memory it and its host hold."""
        host, own = self._ranks[reading.rank].place.host, reading.memory
        before = self._memory.get(host)
        held = {} if before is None else dict(before.ranks_bytes)
        self._memory[host] = HostMemory(
            used_bytes=own.host_used_bytes,
            total_bytes=own.host_total_bytes,
            ranks_bytes=held | {reading.rank: own.process_bytes},
        )

    def poll(self) -> list[Failure]:
        """Look once. What stands still or is gone comes back as failures, once for each rank, its
        process ended; what is slow is told and goes on."""
        now_s = self._clock()
        for found in self._agents.observe(self._targets).values():
            self._seen.update(found)
            self._heard_s.update(dict.fromkeys(found, now_s))
        for rank, own in self._ranks.items():
            if self._agents.is_starting(own.place.node_id):
                self._heard_s[rank] = now_s
        self._tell_silences(now_s)
        evidence = ClusterEvidence(
            now_s=now_s,
            ranks={
                rank: replace(
                    self._seen.get(rank, RankEvidence(rank=rank, host=own.place.host)),
                    silent_s=now_s - self._heard_s[rank],
                    role=own.role,
                )
                for rank, own in self._ranks.items()
            },
            losses=tuple(self._losses),
            memory=dict(self._memory),
        )
        self._losses.clear()
        self._watchdog.observe(evidence)
        return [f for finding in self._watchdog.findings for f in self._act(finding)]

    def _tell_silences(self, now_s: float) -> None:
        """Say which host is out of reach while nothing is done about it yet."""
        heard_s: dict[str, float] = {}
        for rank, own in self._ranks.items():
            host = own.place.host
            heard_s[host] = max(self._heard_s[rank], heard_s.get(host, 0.0))
        silent = {host: now_s - at_s for host, at_s in heard_s.items()}
        for silence in self._silences.add(silent):
            again = f"{silence.host} is heard of again, after {silence.seconds:.1f} s"
            cause = f"nothing was heard of {silence.host} for {silence.seconds:.1f} s"
            append_event(
                self._events,
                now_s=time.time(),
                kind="host_heard" if silence.over else "host_silent",
                step=self._step,
                host=silence.host,
                cause=again if silence.over else cause,
            )

    def _act(self, finding: Finding) -> list[Failure]:
        if finding.kind not in ("lost", "hang"):
            self._tell(finding)
            return []
        if finding.cause == "all-silent":
            return []
        if finding.may_heal and finding.rank is None and finding.cause != "host-silent":
            self._tell(finding)
            if finding.detected_after_s < _HEALING_S:
                return []
        # What was ended stands still from then on, and is found again until the others have left.
        ranks = [rank for rank in self._blamed(finding) if rank not in self._ended]
        if not ranks:
            return []
        self._ended.update(ranks)
        evidence = finding.evidence[1:]
        if finding.kind == "hang":
            # Before anybody is ended: a process that is gone has no stack.
            evidence += self._stacks(finding)
        for rank in ranks:
            self._agents.end(self._ranks[rank].place.node_id, self._ranks[rank].process)
        return [self._failure(finding, rank, evidence) for rank in ranks]

    def _stacks(self, finding: Finding) -> tuple[str, ...]:
        """Keep the stacks of all ranks beside their logs; what they say, in sentences."""
        dumps = self._agents.stacks(self._targets, limit_s=_STACKS_S)
        path = self._events.parent / "logs" / f"stacks-step-{finding.step}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "\n\n".join(
                f"rank {rank} ({dump.note})\n{dump.text}" for rank, dump in sorted(dumps.items())
            )
        )
        texts = {rank: dump.text for rank, dump in dumps.items() if dump.text}
        return (*sentences(texts), f"all stacks are in {path}")

    def _blamed(self, finding: Finding) -> list[int]:
        """The ranks to replace; all of them where the fault lies between them."""
        if finding.rank is not None:
            return [finding.rank]
        return [
            rank
            for rank, own in self._ranks.items()
            if finding.host is None or own.place.host == finding.host
        ]

    def _failure(self, finding: Finding, rank: int, evidence: tuple[str, ...]) -> Failure:
        place = self._ranks[rank].place
        return Failure(
            kind="hung" if finding.kind == "hang" else "died",
            rank=rank,
            host=place.host,
            phase=finding.phase,
            step=finding.step,
            error=f"{finding.title}: {finding.evidence[0]}",
            exit_code=ExitCode.INFRASTRUCTURE,
            time_s=time.time() - finding.detected_after_s,
            detected_s=finding.detected_after_s,
            evidence=evidence,
            host_lost=finding.cause == "host-silent",
        )

    def _tell(self, finding: Finding) -> None:
        """Say it once while it stands."""
        if not self._told.is_new(finding, self._clock()):
            return
        self._view.warning(f"step {finding.step}: {finding.title}: {finding.evidence[0]}")
        append_event(
            self._events,
            now_s=time.time(),
            kind=_EVENTS.get(finding.cause, finding.kind),
            step=finding.step,
            host=finding.host,
            rank=finding.rank,
            phase=finding.phase,
            link=finding.link,
            cause=finding.evidence[0],
            evidence=list(finding.evidence[1:]),
        )


def watched_ranks(
    places: Sequence[Place], processes: Mapping[int, int], specs: Mapping[int, RankSpec]
) -> list[WatchedRank]:
    """Of the ranks of one generation; processes and specs are by rank."""
    stages = stage_by_rank(specs[0].job.parallel, len(places))
    return [
        WatchedRank(
            place=place,
            process=processes[place.rank],
            board=specs[place.rank].board,
            role=f"stage {stages[place.rank]}",
        )
        for place in places
    ]


def _by_node(ranks: Sequence[WatchedRank]) -> dict[str, list[Target]]:
    targets: defaultdict[str, list[Target]] = defaultdict(list)
    for own in ranks:
        place = own.place
        targets[place.node_id].append(
            Target(rank=place.rank, host=place.host, process=own.process, board=own.board)
        )
    return dict(targets)
