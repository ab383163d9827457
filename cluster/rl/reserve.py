"""Room on the cluster beyond what the run reserved at its start, one placement group for each seat.

Used by the conducting thread alone. Nothing here waits: Ray finds room, or does not.
"""

from dataclasses import dataclass, field

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.placement import nodes_of_bundles
from cluster.preflight import Node, living_nodes


@dataclass(frozen=True)
class Place:
    """Where a process goes."""

    node: Node
    group: PlacementGroup
    bundle: int


def place_in(group: PlacementGroup, bundle: int) -> Place | None:
    """A bundle of a group; None while it has no node."""
    node_id = nodes_of_bundles(group).get(bundle)
    node = next((n for n in living_nodes(ray.nodes()) if n.node_id == node_id), None)
    return None if node is None else Place(node, group, bundle)


@dataclass
class Reserve:
    """Groups by the number of the seat. Removed together by `close`."""

    name: str
    bundle: dict[str, float]
    """What one of them reserves."""

    _groups: dict[int, PlacementGroup] = field(default_factory=dict)

    def find(self, seat: int) -> Place | None:
        """Room for a seat; None while there is none. Asks for it when it is first called."""
        group = self._groups.get(seat)
        if group is None:
            # Ray knows no empty bundle; a byte is free even where no core is.
            group = placement_group([self.bundle or {"memory": 1.0}], name=f"{self.name}-{seat}")
            self._groups[seat] = group
        return place_in(group, 0) if group.wait(0) else None

    def release(self, seat: int) -> None:
        """Give back the room of a seat, if it has any."""
        group = self._groups.pop(seat, None)
        if group is not None:
            remove_placement_group(group)

    def close(self) -> None:
        """Give back all."""
        for seat in list(self._groups):
            self.release(seat)
