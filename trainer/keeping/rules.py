"""Pure: which snapshots in memory go with which runs. Neither torch nor ray.

Guarantees, each asserted in tests/trainer/keeping/test_rules.py:
- islands have a snapshot of every step, or none;
- islands have no copies on other hosts: where the recipe demands them it is refused, where it
  leaves that open it is told;
- what is refused names the nearest that goes.
"""

from trainer.keeping.config import KeepingConfig


def problem_of(keep: KeepingConfig, *, islands: int) -> str | None:
    """Which rule the recipe breaks, with the nearest that keeps it; None where it keeps all."""
    if islands == 1:
        return None
    if keep.every_steps > 1:
        return (
            f"keep.interval_steps={keep.interval_steps} does not go with parallel.island={islands}:"
            " islands go on from snapshots of different steps, which belong together only where "
            "each keeps every step; leave it at auto, or set it to 1 or 0"
        )
    if keep.replica_hosts != "auto" and keep.replica_hosts:
        return (
            f"keep.replica_hosts={keep.replica_hosts} does not go with parallel.island={islands}: "
            f"{_WHY}; leave it at auto, or set it to 0"
        )
    return None


def without_copies(copies: int, *, islands: bool) -> str:
    """Why there are none on other hosts where `copies` would be kept; empty where they are."""
    return f"keep.replica_hosts=auto is 0 with islands: {_WHY}" if islands and copies else ""


_WHY = (
    "a copy is some seconds old, and cannot belong to the newest steps of other islands. An island "
    "whose host is lost joins the others, or they go on without it"
)
