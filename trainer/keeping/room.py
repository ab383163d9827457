"""Pure: whether the hosts have room for snapshots.

Guarantees, each asserted in tests/trainer/keeping/test_room.py:
- the needs of all ranks of a host are added up, and held against its memory and the folder alike;
- a host needs room for its own ranks' slots and for copies of the shares that it keeps for others;
- a problem names what is needed, what there is, and the remedies.
"""

from collections.abc import Sequence

from trainer.keeping.partners import wards

FRACTION = 0.5
"""Of a host's free memory that snapshots may take: checkpoints are staged in the rest."""

COPIES = 2
"""Of each share that a host keeps for another: one that is whole, one that is arriving."""

_GIB = 1024**3


def needs_of_host(
    host: str, sizes_bytes: Sequence[tuple[str, int]], *, slots: int, copies: int
) -> list[int]:
    """What `host` needs, an entry for each of its own ranks and each share it keeps for another.
    `sizes_bytes` are, by rank, the host and the size of one share."""
    kept_for = wards([other for other, _ in sizes_bytes], copies)[host]
    own = [slots * size for other, size in sizes_bytes if other == host]
    return own + [COPIES * size for other, size in sizes_bytes if other in kept_for]


def room_problem(
    needs_bytes: Sequence[int], *, memory_bytes: int, folder_bytes: int, folder: str
) -> str | None:
    """Why one host cannot keep snapshots, its own and copies; None if it can."""
    need_bytes = sum(needs_bytes)
    remedy = (
        "shard over more hosts, make more room, or set keep.replica_hosts=0 to do without copies "
        "on other hosts, or keep.interval_steps=0 to do without any"
    )
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
