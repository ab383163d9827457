"""Collectives that everybody entered and that do not end.

Pure. Guarantees, asserted with those of hang.py in tests/cluster/watchdog/test_hang.py.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cluster.watchdog.deadlines import Deadlines
from cluster.watchdog.evidence import ClusterEvidence
from cluster.watchdog.finding import Cause, Finding
from cluster.watchdog.tracks import Track
from cluster.watchdog.waits import Wait


def stuck_transfers(
    waits: Iterable[Wait],
    tracks: Mapping[int, Track],
    evidence: ClusterEvidence,
    deadlines: Deadlines,
) -> list[Finding]:
    """One finding for the collective that has been open longest, if that is too long."""
    together: dict[tuple[str, int], list[Wait]] = {}
    for wait in waits:
        if not wait.missing and wait.collective.awaited_s is not None:
            together.setdefault(wait.key, []).append(wait)
    open_s = {
        key: min(tracks[wait.rank].transfer_s for wait in group) for key, group in together.items()
    }
    late = [key for key, seconds in open_s.items() if seconds > deadlines.transfer_s]
    if not late:
        return []
    # The smallest of them says most about where the trouble lies.
    key = min(late, key=lambda key: (len(together[key][0].members), -open_s[key]))
    return [_finding(together[key], open_s[key], evidence, deadlines, others=len(late) - 1)]


def _finding(
    group: Sequence[Wait],
    open_s: float,
    evidence: ClusterEvidence,
    deadlines: Deadlines,
    *,
    others: int,
) -> Finding:
    first = group[0]
    cause, rank, sentence = _culprit(group)
    hosts = sorted({evidence.ranks[member].host for member in first.members})
    link = _link(first.members, hosts) if cause == "all-arrived" else None
    sentences = [
        f"{first.collective.kind} {first.collective.sequence} of communicator "
        f"{first.collective.communicator} was entered by all of ranks {list(first.members)} on "
        f"{', '.join(hosts)} and has been open for {open_s:.1f} s (allowed: "
        f"{deadlines.transfer_s:.1f} s)",
        sentence,
    ]
    if others:
        sentences.append(f"{others} larger collectives are open for too long as well")
    reading = evidence.ranks[first.rank].reading
    assert reading is not None
    return Finding(
        kind="hang",
        cause=cause,
        rank=rank,
        host=None if rank is None else evidence.ranks[rank].host,
        link=link,
        phase=reading.phase,
        step=reading.step,
        communicator=first.collective.communicator,
        sequence=first.collective.sequence,
        detected_after_s=open_s,
        confidence=0.8 if rank is not None else 0.7 if link else 0.3,
        evidence=tuple(sentences),
        may_heal=cause == "all-arrived",
    )


def _culprit(group: Sequence[Wait]) -> tuple[Cause, int | None, str]:
    """The rank that differs from the others in this collective, if one does."""
    kinds = Counter(wait.collective.kind for wait in group)
    if len(kinds) > 1:
        usual = kinds.most_common(1)[0][0]
        odd = next(wait for wait in group if wait.collective.kind != usual)
        sentence = f"rank {odd.rank} is in {odd.collective.kind}, the others are in {usual}"
        return "kind-mismatch", odd.rank, sentence
    waiting = [wait for wait in group if wait.collective.started_s is None]
    if waiting and len(waiting) < len(group):
        odd = waiting[0]
        ranks = sorted(wait.rank for wait in waiting)
        sentence = f"ranks {ranks} queued it and never began it, the others began"
        return "never-started", odd.rank, sentence
    if len(group) == 1 and len(group[0].members) > 2:
        sentence = f"only rank {group[0].rank} is still in it, the others have finished"
        return "all-arrived", group[0].rank, sentence
    ranks = sorted(wait.rank for wait in group)
    return "all-arrived", None, f"ranks {ranks} are still in it"


def _link(members: Sequence[int], hosts: Sequence[str]) -> tuple[str, str] | None:
    if len(hosts) == 2:
        return hosts[0], hosts[1]
    if len(hosts) == 1 and len(members) == 2:
        return f"rank {min(members)}", f"rank {max(members)}"
    return None
