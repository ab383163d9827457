"""Readings and evidence written by hand, for tests of single rules."""

from collections.abc import Mapping, Sequence

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.deadlines import History
from cluster.watchdog.evidence import ClusterEvidence, ProcessState, RankEvidence
from cluster.watchdog.hang import Standstill
from cluster.watchdog.steps import RankStep
from cluster.watchdog.tracks import Track
from cluster.watchdog.waits import current, modes, open_waits
from trainer.boards import CollectiveRecord, RankReading

HOSTS = {0: "a", 1: "a", 2: "b", 3: "b"}


def collective(
    communicator: str = "world",
    sequence: int = 1,
    *,
    kind: str = "all_reduce",
    sent_bytes: int = 1024,
    started: bool = True,
    awaited: bool = True,
    seconds: float | None = None,
) -> CollectiveRecord:
    """Enqueued at 0; ended after `seconds`."""
    return CollectiveRecord(
        communicator=communicator,
        sequence=sequence,
        kind=kind,
        sent_bytes=sent_bytes,
        phase="backward",
        enqueued_s=0.0,
        started_s=0.0 if started else None,
        awaited_s=0.0 if awaited else None,
        ended_s=seconds,
    )


def reading(
    rank: int,
    *,
    phase: str = "backward",
    last: Mapping[str, int] | None = None,
    pending: Sequence[CollectiveRecord] = (),
    recent: Sequence[CollectiveRecord] = (),
    members: Mapping[str, tuple[int, ...]] | None = None,
    generation: int = 0,
    steps: Sequence[int] = (),
    step_s: float = 1.0,
    heartbeat_s: float = 0.0,
    step: int = 7,
) -> RankReading:
    """Steps of equal length that ended at whole multiples of it."""
    return RankReading(
        rank=rank,
        pid=rank,
        generation=generation,
        heartbeat_s=heartbeat_s,
        phase=phase,
        phase_since_s=0.0,
        step=step,
        round=0,
        last_sequence=last or {},
        members={"world": (0, 1, 2, 3)} if members is None else members,
        pending=tuple(pending),
        recent=tuple(recent),
        steps=tuple(steps),
        step_ended_s=tuple(number * step_s for number in steps),
        compute_s=tuple(step_s / 2 for _ in steps),
        waited_s=tuple(step_s / 4 for _ in steps),
    )


def evidence(
    *readings: RankReading,
    now_s: float = 0.0,
    process: Mapping[int, ProcessState] | None = None,
    silent_s: Mapping[int, float] | None = None,
) -> ClusterEvidence:
    """Two hosts with two ranks each."""
    return ClusterEvidence(
        now_s=now_s,
        ranks={
            own.rank: RankEvidence(
                rank=own.rank,
                host=HOSTS[own.rank],
                process=(process or {}).get(own.rank, "sleeping"),
                silent_s=(silent_s or {}).get(own.rank, 0.0),
                reading=own,
            )
            for own in readings
        },
    )


def known_history(step_s: float = 0.5) -> History:
    """After ten steps of equal length."""
    history = History(WatchdogConfig())
    for step in range(1, 11):
        history.add_step(step_s, step, None)
        history.add_silence("backward", step_s / 2, step)
    return history


def standstill(
    *readings: RankReading, still_s: float, process: Mapping[int, ProcessState] | None = None
) -> Standstill:
    """Nothing has changed for `still_s`."""
    seen = evidence(*readings, process=process)
    waits = open_waits(current(seen))
    found_modes = modes(seen.ranks, waits)
    tracks = {
        rank: Track(
            rank,
            own_s=still_s * (mode == "own"),
            transfer_s=still_s * (mode == "transfer"),
            waiting_s=still_s * (mode == "waiting"),
            stopped_s=still_s * (seen.ranks[rank].process == "stopped"),
            stopped_seen=9 * (seen.ranks[rank].process == "stopped"),
        )
        for rank, mode in found_modes.items()
    }
    return Standstill(
        evidence=seen,
        readings=current(seen),
        tracks=tracks,
        modes=found_modes,
        waits=waits,
        history=known_history(),
    )


def rank_step(
    *,
    busy_s: float = 0.5,
    duration_s: float = 1.0,
    compute_s: float | None = None,
    data_s: float = 0.0,
    work: float | None = None,
) -> RankStep:
    """One step: busy, then waiting for the rest of it."""
    return RankStep(
        duration_s=duration_s,
        compute_s=busy_s if compute_s is None else compute_s,
        waited_s=duration_s - busy_s - data_s,
        data_s=data_s,
        work=work,
    )
