"""Phases that workers report of themselves, and when one has lasted too long. Pure decisions.

Guarantees, each asserted in tests/cluster/test_startup.py:
- a start-up phase that lasts longer than its deadline is reported with phase, rank, host, elapsed;
- a rank that is further than another is never late, since it may be waiting for the other;
- training and stopping have no deadline here;
- the group's phase is that of the rank that is least far.
"""

from collections.abc import Mapping, Sequence

from cluster.config import DeadlineConfig
from cluster.reading import Place

ORDER = (
    "starting",
    "preparing",
    "joining",
    "building",
    "loading",
    "first_step",
    "training",
    "stopping",
    "done",
)
"""Phases in the order in which a worker goes through them (trainer/status.py)."""


def deadlines_by_phase(config: DeadlineConfig) -> dict[str, float]:
    """Seconds each start-up phase may last."""
    return {
        "starting": config.starting_s,
        "preparing": config.preparing_s,
        "joining": config.joining_s,
        "building": config.building_s,
        "loading": config.loading_s,
        "first_step": config.first_step_s,
    }


def least_far(phases: Mapping[int, str]) -> tuple[str, list[int]]:
    """The earliest phase any rank is in, and the ranks in it. `phases` is by rank."""
    phase = min(phases.values(), key=ORDER.index)
    return phase, sorted(rank for rank, own in phases.items() if own == phase)


def overrun(
    phases: Mapping[int, tuple[str, float]], deadlines: Mapping[str, float], places: Sequence[Place]
) -> tuple[int, str] | None:
    """The rank that holds up a start-up phase for too long and a sentence on it, or None.

    `phases` gives phase and seconds spent in it by rank. The clock of a phase runs from the moment
    the last of the ranks that are least far has entered it.
    """
    phase, ranks = least_far({rank: own for rank, (own, _) in phases.items()})
    if min(phases[rank][1] for rank in ranks) <= deadlines.get(phase, float("inf")):
        return None
    rank = max(ranks, key=lambda rank: phases[rank][1])
    return rank, (
        f"{phase}: rank {rank} on {places[rank].host} has been at it for {phases[rank][1]:.0f} s, "
        f"allowed are {deadlines[phase]:g} s (cluster.deadlines.{phase}_s); raise the deadline, or "
        "see the worker's log in the run folder"
    )
