"""The communicators between islands and inside them."""

from dataclasses import dataclass

import torch.distributed as dist

from comms.groups import own_group
from parallel.layout import Layout


@dataclass(frozen=True, kw_only=True)
class IslandGroups:
    """This rank's. All carry CPU tensors, and each is used by one thread alone."""

    across: dist.ProcessGroup
    """The ranks in the same place of all islands, in their order."""

    inside: dist.ProcessGroup
    """The ranks of this island."""

    firsts: dist.ProcessGroup | None
    """The first ranks of all islands; None on the others."""


def make_island_groups(layout: Layout) -> IslandGroups:
    """Make them. All ranks of the world call it."""
    places = range(layout.island_ranks)
    across = own_group((layout.line("island", place) for place in places), backend="gloo")
    inside = own_group(layout.islands(), backend="gloo")
    assert across is not None
    assert inside is not None
    return IslandGroups(
        across=across,
        inside=inside,
        firsts=own_group([layout.line("island", 0)], backend="gloo"),
    )
