"""Two real hosts for tests: what a drill makes them of, with this repository's code on both."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.drills import namespaces
from cluster.drills.namespaces import (
    DASHBOARD,
    GCS_PORT,
    Host,
    await_nodes,
    join_ray,
    start_ray,
    why_not,
)
from cluster.environment import variables_without

__all__ = [
    "DASHBOARD",
    "GCS_PORT",
    "NEEDS_HOSTS",
    "ROOT",
    "Host",
    "await_nodes",
    "join_ray",
    "start_ray",
    "two_hosts",
]

ROOT = Path(__file__).resolve().parents[2]

NEEDS_HOSTS = [
    pytest.mark.hosts,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
"""What tests on real hosts are marked with."""


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Namespaces that reach each other and nothing else; gone afterwards, whatever happened."""
    variables = variables_without("RAY_")
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    with namespaces.two_hosts(variables) as hosts:
        yield hosts
