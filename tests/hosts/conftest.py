"""A Ray cluster over two real hosts, for the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.hosts.namespaces import Host, start_ray, two_hosts


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """One core each."""
    with two_hosts() as (first, second):
        start_ray(first, [second], num_cpus=1)
        yield first, second
