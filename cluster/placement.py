"""Where each rank runs: the order of ranks is a function of the nodes alone.

Guarantees, each asserted in tests/cluster/test_placement.py:
- ranks of a node are neighbours, in the order of its bundles;
- the head node's ranks come first, the other nodes follow by address;
- local ranks count from 0 on every node.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from cluster.preflight import Needs, Node
from cluster.reading import Place
from cluster.waiting import Waiting
from trainer.errors import ResourceError


def rank_places(bundle_nodes: Mapping[int, str], nodes: Sequence[Node]) -> list[Place]:
    """Places by rank. `bundle_nodes` gives the node id of every bundle."""
    order = sorted(nodes, key=_node_key)
    bundles = {node.node_id: [] for node in order}  # type: dict[str, list[int]]
    for bundle in sorted(bundle_nodes):
        bundles[bundle_nodes[bundle]].append(bundle)
    places: list[Place] = []
    for node in order:
        for local_rank, bundle in enumerate(bundles[node.node_id]):
            places.append(
                Place(
                    rank=len(places),
                    bundle=bundle,
                    node_id=node.node_id,
                    host=node.host,
                    address=node.address,
                    local_rank=local_rank,
                    local_world_size=len(bundles[node.node_id]),
                )
            )
    return places


def _node_key(node: Node) -> tuple[bool, int, str]:
    return not node.is_head, int(ip_address(node.address)), node.node_id


@contextmanager
def reserved(name: str, needs: Needs, waiting: Waiting) -> Iterator[PlacementGroup]:
    """A placement group with a bundle per worker, packed onto few nodes; removed on leaving.

    Raises ResourceError where it is not there within the deadline.
    """
    group = placement_group([needs.bundle()] * needs.workers, strategy="PACK", name=name)
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
                f"placing: no room for {needs.workers} workers within {waiting.deadline_s:g} s "
                f"(cluster.deadlines.placing_s); free on the whole cluster: {have}. Other work "
                "holds the rest; stop it, wait for it, or raise the deadline"
            )


def nodes_of_bundles(group: PlacementGroup) -> dict[int, str]:
    """Node id of every bundle of a placed group."""
    table = placement_group_table(group)
    return {int(bundle): node for bundle, node in table["bundles_to_node_id"].items()}
