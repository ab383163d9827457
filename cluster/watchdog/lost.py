"""Ranks and hosts that are gone.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_lost.py:
- a process that is gone or a zombie is named at once, unless its rank is done;
- a host is lost when none of its ranks was heard of for the whole silence, and others were;
- a rank that is silent while its host is heard of is named alone;
- silence of every host at once is said to be the observer's own trouble.
"""

from collections import defaultdict

from cluster.watchdog.evidence import ClusterEvidence, RankEvidence
from cluster.watchdog.finding import Finding
from cluster.watchdog.phases import ENDED


def losses(evidence: ClusterEvidence, *, silence_s: float) -> list[Finding]:
    """Everything that is gone."""
    gone = [
        seen
        for seen in evidence.ranks.values()
        if seen.process in ("gone", "zombie") and not _ended(seen)
    ]
    return [_gone(seen) for seen in gone] + _silent(evidence, silence_s)


def _ended(seen: RankEvidence) -> bool:
    return seen.reading is not None and seen.reading.phase in ENDED


def _where(seen: RankEvidence) -> tuple[str, int]:
    return (seen.reading.phase, seen.reading.step) if seen.reading else ("starting", 0)


def _gone(seen: RankEvidence) -> Finding:
    phase, step = _where(seen)
    sentences = [
        f"the process of rank {seen.rank} on {seen.host} is {seen.process}; its last words are "
        f"phase {phase}, step {step}"
    ]
    if seen.reading:
        sentences += [
            f"it left {open_.kind} {open_.sequence} of communicator {open_.communicator} open"
            for open_ in seen.reading.pending[:1]
        ]
    return Finding(
        kind="lost",
        cause="process-gone",
        rank=seen.rank,
        host=seen.host,
        phase=phase,
        step=step,
        detected_after_s=max(seen.silent_s, seen.heartbeat_age_s),
        confidence=0.99,
        evidence=tuple(sentences),
    )


def _silent(evidence: ClusterEvidence, silence_s: float) -> list[Finding]:
    by_host: defaultdict[str, list[RankEvidence]] = defaultdict(list)
    for seen in evidence.ranks.values():
        if seen.process not in ("gone", "zombie") and not _ended(seen):
            by_host[seen.host].append(seen)
    silent = {
        host: min(seen.silent_s for seen in ranks)
        for host, ranks in by_host.items()
        if min(seen.silent_s for seen in ranks) > silence_s
    }
    if len(silent) == len(by_host) > 1:
        return [_all_silent(silent)]
    alone = [
        seen
        for host, ranks in by_host.items()
        for seen in ranks
        if host not in silent and seen.silent_s > silence_s
    ]
    hosts = [_host(host, by_host[host], seconds) for host, seconds in sorted(silent.items())]
    return hosts + [_rank(seen) for seen in alone]


def _rank(seen: RankEvidence) -> Finding:
    phase, step = _where(seen)
    return Finding(
        kind="lost",
        cause="rank-silent",
        rank=seen.rank,
        host=seen.host,
        phase=phase,
        step=step,
        detected_after_s=seen.silent_s,
        confidence=0.7,
        evidence=(
            f"nothing was heard of rank {seen.rank} for {seen.silent_s:.1f} s, while other ranks "
            f"of {seen.host} were heard of",
        ),
        may_heal=True,
    )


def _host(host: str, ranks: list[RankEvidence], seconds: float) -> Finding:
    phase, step = _where(ranks[0])
    return Finding(
        kind="lost",
        cause="host-silent",
        host=host,
        phase=phase,
        step=step,
        detected_after_s=seconds,
        confidence=0.9,
        evidence=(
            f"nothing was heard of {host} for {seconds:.1f} s: the host, or the link to it, is "
            f"gone; its ranks are {sorted(seen.rank for seen in ranks)}",
        ),
        may_heal=True,
    )


def _all_silent(silent: dict[str, float]) -> Finding:
    return Finding(
        kind="lost",
        cause="all-silent",
        detected_after_s=min(silent.values()),
        confidence=0.5,
        evidence=(
            f"none of {', '.join(sorted(silent))} was heard of for {min(silent.values()):.1f} s: "
            "the observer itself is cut off, or the whole cluster is",
        ),
        may_heal=True,
    )
