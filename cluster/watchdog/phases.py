"""What the phases of a rank mean to the watchdog."""

IN_STEP = frozenset(
    {
        "training",
        "step",
        "rounds",
        "report",
        "forward",
        "backward",
        "compute",
        "communication",
        "reduce",
        "data",
        "feed",
        "clip",
        "vote",
        "update",
        "publish",
    }
)
"""Phases that every step goes through. Others are long: nobody expects them to end in a step."""

DATA = frozenset({"data", "feed", "preparing"})
"""Phases in which a rank waits for its batches."""

STORAGE = frozenset({"save", "saving", "checkpoint", "loading", "snapshot"})
"""Phases in which a rank waits for a disk or a file system."""

ENDED = frozenset({"done"})
"""Phases that never end."""

UNTIMED = ENDED | {"rollouts"}
"""Phases that may last for ever: a batch of answers takes as long as those who sample need, and
they are watched by themselves."""
