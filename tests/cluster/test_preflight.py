"""The guarantees of cluster/preflight.py."""

from dataclasses import replace

import pytest

from cluster.preflight import (
    GIB,
    Needs,
    Node,
    NodeReport,
    check_capacity,
    check_nodes,
    fits,
    living_nodes,
)
from trainer.errors import ExitCode, ResourceError

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0"}


def node(host: str, **resources: float) -> Node:
    return Node(
        node_id=host, host=host, address="10.0.0.1", is_head=False, resources=dict(resources)
    )


def needs(workers: int, cpus: float = 1.0, gpus: float = 0.0, memory_gib: float = 0.0) -> Needs:
    return Needs(workers=workers, cpus=cpus, gpus=gpus, memory_bytes=int(memory_gib * GIB))


def test_dead_nodes_do_not_count() -> None:
    base = {
        "NodeManagerHostname": "h",
        "NodeManagerAddress": "10.0.0.1",
        "Resources": {"CPU": 4.0, "node:__internal_head__": 1.0},
    }
    found = living_nodes(
        [{**base, "NodeID": "a", "Alive": True}, {**base, "NodeID": "b", "Alive": False}]
    )
    assert [(n.node_id, n.is_head) for n in found] == [("a", True)]


def test_hosts_that_share_a_name_go_by_their_address() -> None:
    found = living_nodes(
        [
            {
                "NodeID": address,
                "Alive": True,
                "NodeManagerHostname": name,
                "NodeManagerAddress": address,
                "Resources": {},
            }
            for name, address in (("x", "10.0.0.1"), ("x", "10.0.0.2"), ("y", "10.0.0.3"))
        ]
    )
    assert [n.host for n in found] == ["10.0.0.1", "10.0.0.2", "y"]


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({"CPU": 4.0}, 0),
        ({"CPU": 4.0, "GPU": 8.0}, 2),
        ({"CPU": 64.0, "GPU": 3.0}, 3),
    ],
)
def test_a_node_holds_what_its_scarcest_resource_holds(
    resources: dict[str, float], count: int
) -> None:
    assert fits(node("a", **resources), needs(99, cpus=2, gpus=1)) == count


def test_fractions_of_a_core_add_up() -> None:
    assert fits(node("a", CPU=1.0), needs(99, cpus=0.1)) == 10


def test_table_has_a_row_per_node_and_says_what_is_lacking() -> None:
    nodes = [node("big", CPU=8.0, GPU=2.0, memory=64.0 * GIB), node("small", CPU=8.0)]
    table = check_capacity(nodes, needs(2, gpus=1, memory_gib=16)).splitlines()
    assert table[0] == "need: 2 workers, each 1 CPU, 1 GPU, 16.0 GiB memory"
    assert table[2].split()[0] == "big"
    assert table[2].endswith("2      -")
    assert table[3].split()[0] == "small"
    assert table[3].endswith("0      1 GPU, 16.0 GiB memory")


def test_too_few_is_a_resource_error_with_table_and_remedy() -> None:
    with pytest.raises(ResourceError) as caught:
        check_capacity([node("a", CPU=2.0), node("b", CPU=1.0)], needs(4))
    message = str(caught.value)
    assert caught.value.exit_code is ExitCode.RESOURCES
    assert "3 of the 4 workers" in message
    assert "lower cluster.num_workers to 3" in message
    assert "a (10.0.0.1)" in message


def test_workers_that_fit_nowhere_are_told_to_take_less() -> None:
    with pytest.raises(ResourceError, match=r"cluster\.gpus_per_worker"):
        check_capacity([node("a", CPU=2.0)], needs(1, gpus=1))


def test_equal_nodes_pass() -> None:
    report = NodeReport(host="a", versions=VERSIONS, sees_folder=True)
    check_nodes([report], VERSIONS, "/runs/x")
    assert check_capacity([node("a", CPU=1.0)], needs(1))


def test_all_differing_nodes_are_named_in_one_error() -> None:
    reports = [
        NodeReport(host="old", versions=VERSIONS | {"torch": "2.11.0"}, sees_folder=True),
        NodeReport(host="bare", versions={"python": "3.11.7", "ray": "2.60.0"}, sees_folder=True),
        NodeReport(host="apart", versions=VERSIONS, sees_folder=False),
        NodeReport(host="mute", versions={}, sees_folder=False, problem="did not answer"),
        NodeReport(host="good", versions=VERSIONS, sees_folder=True),
    ]
    with pytest.raises(ResourceError) as caught:
        check_nodes(reports, VERSIONS, "/runs/x")
    message = str(caught.value)
    assert "old: torch 2.11.0, the driver has 2.13.0" in message
    assert "bare: torch is missing" in message
    assert "apart: cannot read or write the driver's run folder /runs/x" in message
    assert "mute: did not answer" in message
    assert "good" not in message


def sampling(rollouts: int, *, cpus: float = 1.0, gpus: float = 0.0) -> Needs:
    """Two that train with a core each, and those that sample."""
    return replace(
        needs(2), rollouts=rollouts, rollout_cpus=cpus, rollout_gpus=gpus, rollout_memory_bytes=0
    )


def test_those_that_sample_need_room_beside_the_workers() -> None:
    assert check_capacity([node("a", CPU=4.0)], sampling(2)).endswith(
        "and 2 that sample, each 1 CPU"
    )
    with pytest.raises(ResourceError, match=r"missing: 1 CPU.*lower rollout\.workers"):
        check_capacity([node("a", CPU=3.0)], sampling(2))


def test_one_that_samples_fits_on_one_node() -> None:
    with pytest.raises(ResourceError, match="room on one node"):
        check_capacity([node("a", CPU=3.0), node("b", CPU=3.0)], sampling(1, cpus=4.0))


def test_bundles_are_for_workers_then_spares_then_those_that_sample() -> None:
    wanted = replace(sampling(2, cpus=0.5), spares=1)
    assert wanted.bundles() == [
        {"CPU": 1.0},
        {"CPU": 1.0},
        {"memory": 1.0},
        {"CPU": 0.5},
        {"CPU": 0.5},
    ]
    assert wanted.first_rollout_bundle == 3
