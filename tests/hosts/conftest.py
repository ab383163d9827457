"""A Ray cluster over two real hosts, for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.hosts.namespaces import Host, start_ray, two_hosts


@pytest.fixture(scope="session")
def hosts() -> Iterator[tuple[Host, Host]]:
    """One core each. test_lost_hosts.py, the last by its name, takes them apart."""
    with two_hosts() as (first, second):
        start_ray(first, [second], num_cpus=1)
        yield first, second
