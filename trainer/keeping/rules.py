"""Pure: which snapshots in memory go with which runs. Neither torch nor ray.

Guarantees, each asserted in tests/trainer/keeping/test_rules.py:
- islands have a snapshot of every step, or none; what is refused names the nearest that goes;
- islands have copies on other hosts only where the recipe demands them; where it leaves that open,
  it is told what would be.
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
    return None


def without_copies(keep: KeepingConfig, *, hosts: int, islands: bool) -> str:
    """Why none are kept on other hosts where a run without islands would have some; else empty."""
    if not islands or keep.replica_hosts != "auto" or not keep.replicas_over(hosts):
        return ""
    return (
        "keep.replica_hosts=auto is 0 with islands: an island whose host is lost joins the others, "
        "or they go on without it. With keep.replica_hosts=1 nothing that it learned is lost, and "
        "all islands go back to the step of the copies, which is some seconds old"
    )
