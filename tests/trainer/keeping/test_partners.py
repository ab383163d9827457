"""The guarantees of trainer/keeping/partners.py."""

import pytest

from trainer.keeping.partners import holders, wards

HOSTS = ["a", "a", "b", "b", "c", "c", "d"]


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_every_host_keeps_as_many_as_are_kept_of_it(copies):
    kept_by = holders(HOSTS, copies)
    keeps = wards(HOSTS, copies)
    for host, others in kept_by.items():
        assert host not in others
        assert len(set(others)) == len(others) == copies
        assert len(keeps[host]) == copies
        assert all(host in keeps[other] for other in others)


def test_names_and_node_numbers_come_to_the_same_ring():
    nodes = [f"node-{host}" for host in HOSTS]
    by_node = {n.removeprefix("node-"): o for n, o in wards(nodes, 1).items()}
    assert by_node == {
        h: tuple(f"node-{o}" for o in others) for h, others in wards(HOSTS, 1).items()
    }


def test_fewer_hosts_make_fewer_copies():
    assert holders(["a", "b"], 3) == {"a": ("b",), "b": ("a",)}
    assert holders(["a", "a"], 1) == {"a": ()}
