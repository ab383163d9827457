"""Communicators for dispatch in two stages."""

from collections.abc import Sequence

from comms.groups import own_group
from parallel.experts.dispatch import HostGroups


def host_groups(
    expert_groups: Sequence[Sequence[int]], *, ranks_per_host: int
) -> HostGroups | None:
    """This rank's groups inside its host and between hosts; None where one stage is all there is.

    `expert_groups` are all expert groups of the run, as world ranks in order; neighbours share
    hosts, `ranks_per_host` of each group on every host it spans. All ranks of the world call it
    with the same arguments. Raises ValueError where hosts do not divide a group.
    """
    mine: HostGroups | None = None
    for ranks in expert_groups:
        if len(ranks) <= ranks_per_host or ranks_per_host == 1:
            continue
        if len(ranks) % ranks_per_host:
            raise ValueError(
                f"an expert group of {len(ranks)} ranks does not fill hosts with {ranks_per_host} "
                f"of them each; choose ep among the multiples of {ranks_per_host}"
            )
        starts = range(0, len(ranks), ranks_per_host)
        inside = [tuple(ranks[at : at + ranks_per_host]) for at in starts]
        between = [tuple(ranks[place::ranks_per_host]) for place in range(ranks_per_host)]
        made = [own_group(inside), own_group(between)]
        if made[0] is not None and made[1] is not None:
            mine = HostGroups(inside=made[0], between=made[1])
    return mine
