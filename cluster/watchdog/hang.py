"""Which rank a standstill is due to, and whether communication causes it.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_hang.py:
- only a rank that waits for nobody is blamed for not getting on, however long others wait for it;
- the collective named is the one that most ranks wait in for the culprit;
- a collective that all have entered is blamed on communication, and on the link between two hosts
  where only they take part;
- where one rank never began a collective that others began, that rank is named;
- ranks that wait for one another in a ring entered their collectives in different orders;
- time in which a rank wanted a core and got none is not held against it;
- a rank that waits for its batch or for a disk makes it `data` or `storage`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.watchdog.deadlines import Deadlines, History
from cluster.watchdog.evidence import ClusterEvidence, RankEvidence
from cluster.watchdog.finding import Cause, Finding, Kind
from cluster.watchdog.phases import DATA, IN_STEP, STORAGE, UNTIMED
from cluster.watchdog.tracks import Track
from cluster.watchdog.transfers import stuck_transfers
from cluster.watchdog.waits import Mode, Wait, rings
from trainer.boards import RankReading

FROZEN_S = 1.5
"""A heartbeat thread that has not run for so long is held up by its process."""

_TOLD_STARVED_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Standstill:
    """All that judging one moment takes."""

    evidence: ClusterEvidence
    readings: Mapping[int, RankReading]
    tracks: Mapping[int, Track]
    modes: Mapping[int, Mode]
    waits: Sequence[Wait]
    history: History

    @property
    def deadlines(self) -> Deadlines:
        """What history allows."""
        return self.history.deadlines()

    def allowed_s(self, rank: int) -> float:
        """How long this rank may go without progress now."""
        reading = self.readings[rank]
        if reading.phase in UNTIMED:
            return float("inf")
        return self.deadlines.silence_in(
            reading.phase, more_work=self.history.more_work(reading.step_work)
        )


def hangs(moment: Standstill, *, stopped_s: float) -> list[Finding]:
    """What stands still for too long. Empty while everything gets on."""
    stopped = [
        rank
        for rank, track in moment.tracks.items()
        if track.stopped_s >= stopped_s and track.stopped_seen >= 3
    ]
    found = [_stopped(moment, rank) for rank in stopped]
    # No phase has less, so most moments need no closer look.
    least_s = min(moment.deadlines.silence_s, moment.deadlines.unseen_s)
    late = [
        rank
        for rank in moment.readings
        if rank not in stopped
        and moment.modes[rank] == "own"
        and moment.tracks[rank].own_s > least_s
        and moment.tracks[rank].own_s > moment.allowed_s(rank)
    ]
    found += _by_cause(moment, late)
    if not found:
        found += stuck_transfers(moment.waits, moment.tracks, moment.evidence, moment.deadlines)
    if not found:
        found += _rings(moment)
    if not found:
        found += _endless(moment)
    return found


def _by_cause(moment: Standstill, late: Sequence[int]) -> list[Finding]:
    """One finding per rank; ranks that wait for batches, or for a disk, share one."""
    shared: dict[str, list[int]] = {}
    for rank in late:
        phase = moment.readings[rank].phase
        group = "data" if phase in DATA else "storage" if phase in STORAGE else f"rank {rank}"
        shared.setdefault(group, []).append(rank)
    found = []
    for ranks in shared.values():
        # The rank most others wait for is the one that reads for all.
        culprit = max(ranks, key=lambda r: (len(_waiters(moment, r)), moment.tracks[r].own_s, -r))
        found.append(_late(moment, culprit, [rank for rank in ranks if rank != culprit]))
    return found


def _late(moment: Standstill, rank: int, alike: Sequence[int]) -> Finding:
    seen, reading = moment.evidence.ranks[rank], moment.readings[rank]
    waiters = _waiters(moment, rank)
    kind, cause = _class_of(seen, reading.phase, arrived=not waiters)
    sentences = [
        f"rank {rank} on {seen.host} made no progress for {moment.tracks[rank].own_s:.1f} s in "
        f"phase {reading.phase} of step {reading.step}, round {reading.round} (allowed: "
        f"{moment.allowed_s(rank):.1f} s)",
        *_about_waiters(moment, rank, waiters),
        *_about_process(seen),
        *_about_starvation(moment.tracks[rank]),
    ]
    if alike:
        sentences.append(f"ranks {sorted(alike)} are in phase {reading.phase} for as long")
    return _finding(
        moment, rank, kind, cause, moment.tracks[rank].own_s, sentences, 0.6 if alike else 0.9
    )


def _stopped(moment: Standstill, rank: int) -> Finding:
    seen, track = moment.evidence.ranks[rank], moment.tracks[rank]
    reading = seen.reading
    where = f"in phase {reading.phase} of step {reading.step}" if reading else "before its steps"
    sentences = [
        f"the system has stopped the process of rank {rank} on {seen.host} for "
        f"{track.stopped_s:.1f} s, {where}",
        *_about_waiters(moment, rank, _waiters(moment, rank)),
    ]
    return _finding(moment, rank, "hang", "process-stopped", track.stopped_s, sentences, 0.99)


def _class_of(seen: RankEvidence, phase: str, *, arrived: bool) -> tuple[Kind, Cause]:
    if phase in DATA:
        return "data", "data-loader"
    if phase in STORAGE or seen.process == "disk-wait":
        return "storage", "storage"
    return "hang", "no-progress" if arrived else "never-arrived"


def _finding(
    moment: Standstill,
    rank: int,
    kind: Kind,
    cause: Cause,
    after_s: float,
    sentences: Sequence[str],
    confidence: float,
) -> Finding:
    seen = moment.evidence.ranks[rank]
    collective = _awaited(moment, rank)
    return Finding(
        kind=kind,
        cause=cause,
        rank=rank,
        host=seen.host,
        phase=seen.reading.phase if seen.reading else "starting",
        step=seen.reading.step if seen.reading else 0,
        communicator=collective[0] if collective else None,
        sequence=collective[1] if collective else None,
        detected_after_s=after_s,
        confidence=confidence,
        evidence=tuple(sentences),
    )


def _waiters(moment: Standstill, rank: int) -> list[Wait]:
    return [wait for wait in moment.waits if rank in wait.missing]


def _awaited(moment: Standstill, rank: int) -> tuple[str, int, str] | None:
    """Communicator, sequence and kind of the collective that most ranks wait in for `rank`."""
    counts = Counter(
        (wait.collective.communicator, wait.collective.sequence, wait.collective.kind)
        for wait in _waiters(moment, rank)
    )
    return counts.most_common(1)[0][0] if counts else None


def _about_waiters(moment: Standstill, rank: int, waiters: Sequence[Wait]) -> list[str]:
    collective = _awaited(moment, rank)
    if collective is None:
        return []
    communicator, sequence, kind = collective
    ranks = sorted({wait.rank for wait in waiters})
    longest_s = max(moment.tracks[wait.rank].waiting_s for wait in waiters)
    reading = moment.readings.get(rank)
    last = reading.last_sequence.get(communicator) if reading else None
    return [
        f"it has not entered {kind} {sequence} of communicator {communicator} (its last is "
        f"{'none' if last is None else last}), in which ranks {ranks} have waited for up to "
        f"{longest_s:.1f} s"
    ]


def _about_process(seen: RankEvidence) -> list[str]:
    sentences = []
    if seen.process != "unknown":
        sentences.append(f"its process is {seen.process}")
    if seen.heartbeat_age_s > FROZEN_S:
        sentences.append(
            f"its heartbeat thread has not run for {seen.heartbeat_age_s:.1f} s: the interpreter "
            "is held up by native code, or the process is frozen"
        )
    return sentences


def _about_starvation(track: Track) -> list[str]:
    if track.starved_s < _TOLD_STARVED_S:
        return []
    return [f"{track.starved_s:.1f} s more, in which it wanted a core and got none, do not count"]


def _rings(moment: Standstill) -> list[Finding]:
    found = []
    for ring in rings(moment.waits):
        waited_s = min(moment.tracks[rank].waiting_s for rank in ring)
        if waited_s <= moment.deadlines.transfer_s:
            continue
        # Who entered a collective that is further back in the code cannot be told; name the first.
        rank = ring[0]
        sentences = [
            f"ranks {list(ring)} wait for one another for {waited_s:.1f} s: they entered their "
            "collectives in different orders",
            *(
                f"rank {wait.rank} is in {wait.collective.kind} {wait.collective.sequence} of "
                f"communicator {wait.collective.communicator}, without {list(wait.missing)}"
                for wait in moment.waits
                if wait.rank in ring and wait.missing
            ),
        ]
        found.append(_finding(moment, rank, "hang", "order-mismatch", waited_s, sentences, 0.4))
    return found


def _endless(moment: Standstill) -> list[Finding]:
    """Ranks that move, while their step or round never ends."""
    limits = moment.deadlines
    for rank, reading in moment.readings.items():
        track = moment.tracks[rank]
        more = moment.history.more_work(reading.step_work)
        levels = (("step", track.step_s, limits.step_s), ("round", track.round_s, limits.round_s))
        over = next(((n, s, m * more) for n, s, m in levels if s > m * more), None)
        if over is None or reading.phase not in IN_STEP or moment.modes[rank] != "own":
            continue
        name, seconds, allowed_s = over
        sentence = (
            f"the {name} of rank {rank} goes on for {seconds:.1f} s (allowed: {allowed_s:.1f} s) "
            "although its collectives get on"
        )
        return [_finding(moment, rank, "hang", "no-progress", seconds, [sentence], 0.3)]
    return []
