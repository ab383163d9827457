"""Pure: whether the hosts have room for snapshots.

Guarantees, each asserted in tests/trainer/keeping/test_room.py:
- the needs of all ranks of a host are added up, and held against its memory and the folder alike;
- a problem names what is needed, what there is, and the remedies.
"""

from collections.abc import Sequence

FRACTION = 0.5
"""Of a host's free memory that snapshots may take: checkpoints are staged in the rest."""

_GIB = 1024**3


def room_problem(
    needs_bytes: Sequence[int], *, memory_bytes: int, folder_bytes: int, folder: str
) -> str | None:
    """Why the ranks of one host cannot keep snapshots; None if they can."""
    need_bytes = sum(needs_bytes)
    remedy = "shard over more hosts, make more room, or set keep.interval_steps=0 to do without"
    if need_bytes > folder_bytes:
        return (
            f"snapshots of {len(needs_bytes)} ranks need {need_bytes / _GIB:.3g} GiB, and {folder} "
            f"has {folder_bytes / _GIB:.3g} GiB free; {remedy}"
        )
    if need_bytes > FRACTION * memory_bytes:
        return (
            f"snapshots of {len(needs_bytes)} ranks need {need_bytes / _GIB:.3g} GiB, more than "
            f"{FRACTION:.0%} of the {memory_bytes / _GIB:.3g} GiB of memory that are free; {remedy}"
        )
    return None
