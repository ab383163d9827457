"""Room for the processes of a run on the cluster."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from cluster.preflight import Needs
from cluster.waiting import Waiting
from trainer.errors import ResourceError


@contextmanager
def reserved(name: str, needs: Needs, waiting: Waiting) -> Iterator[PlacementGroup]:
    """A placement group with a bundle per worker, packed onto few nodes; removed on leaving.

    Raises ResourceError where it is not there within the deadline.
    """
    group = placement_group(needs.bundles(), strategy="PACK", name=name)
    try:
        _await(group, needs, waiting)
        yield group
    finally:
        remove_placement_group(group)


def _await(group: PlacementGroup, needs: Needs, waiting: Waiting) -> None:
    while not group.wait(0.5):
        free = ray.available_resources()
        have = ", ".join(f"{free.get(kind, 0.0):g} {kind}" for kind in needs.bundle())
        if waiting.overrun(f"free on the whole cluster: {have}"):
            raise ResourceError(
                f"placing: no room for {len(needs.bundles())} processes within "
                f"{waiting.deadline_s:g} s (cluster.deadlines.placing_s); free on the whole "
                f"cluster: {have}. Other work holds the rest; stop it, wait for it, or raise the "
                "deadline"
            )


def nodes_of_bundles(group: PlacementGroup) -> dict[int, str]:
    """Node id of every bundle of a placed group."""
    table = placement_group_table(group)
    return {int(bundle): node for bundle, node in table["bundles_to_node_id"].items()}
