"""The guarantees of cluster/placement.py, and device order in cluster/worker_group.py."""

from cluster.placement import rank_places
from cluster.preflight import Node
from cluster.worker_group import end_of_process, visible_devices


def node(node_id: str, address: str, *, head: bool = False) -> Node:
    return Node(node_id=node_id, host=node_id, address=address, is_head=head, resources={})


NODES = [
    node("c", "10.0.0.10"),
    node("b", "10.0.0.9"),
    node("head", "10.0.0.200", head=True),
]
BUNDLES = {0: "b", 1: "head", 2: "c", 3: "b", 4: "head", 5: "c"}


def test_head_first_then_by_address_and_neighbours_on_a_node() -> None:
    places = rank_places(BUNDLES, NODES)
    assert [place.host for place in places] == ["head", "head", "b", "b", "c", "c"]
    assert [place.bundle for place in places] == [1, 4, 0, 3, 2, 5]
    assert [place.rank for place in places] == list(range(6))


def test_local_ranks_count_from_zero_on_every_node() -> None:
    places = rank_places({0: "b", 1: "head", 2: "b"}, NODES)
    assert [(p.host, p.local_rank, p.local_world_size) for p in places] == [
        ("head", 0, 1),
        ("b", 0, 2),
        ("b", 1, 2),
    ]


def test_order_does_not_depend_on_the_order_of_the_answers() -> None:
    assert rank_places(BUNDLES, NODES) == rank_places(
        dict(reversed(BUNDLES.items())), list(reversed(NODES))
    )


def test_ranks_of_a_node_see_all_its_devices_by_local_rank() -> None:
    places = rank_places({0: "b", 1: "head", 2: "b"}, NODES)
    visible = visible_devices(places, {0: ["7"], 1: ["3"], 2: ["1"]})
    assert visible == {0: ["7"], 1: ["3", "1"], 2: ["3", "1"]}


def test_the_end_of_a_process_is_told_without_identifiers() -> None:
    message = (
        "The actor died.\n\tactor_id: 1234\n\tpid: 99\n"
        "Worker exit type: USER_ERROR "
        "Worker exit detail: exit code 5. Some common causes include: (1)"
    )
    assert end_of_process(message) == "exit code 5."
