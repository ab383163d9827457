"""Faults of hosts and of the links between them, planted in namespaces of this machine."""

import contextlib
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.drills.faults import Fault, Target
from cluster.drills.namespaces import Host, start_ray, two_hosts, why_not
from cluster.environment import variables_without
from trainer.errors import RecipeError, ResourceError

LINK_MBIT = 500
"""Of a healthy link: memory would be faster than any."""


@dataclass(frozen=True, kw_only=True)
class HostPair:
    """Two hosts with a Ray cluster over them; runs start on the first."""

    head: Host
    other: Host

    @property
    def names(self) -> tuple[str, str]:
        """As a run calls them: hosts that share a name go by their addresses."""
        return self.head.address, self.other.address

    def limit(self, mbit: int) -> None:
        """Bound the link, both ways."""
        for host in (self.head, self.other):
            host.limit(f"{mbit}mbit")


class LoseHost:
    """Every process of a host ends at once, and its memory is gone."""

    def __init__(self, hosts: HostPair, cut_s: float) -> None:
        self._hosts = hosts

    def plant(self, target: Target) -> None:
        self._hosts.other.kill()

    def remove(self) -> None:
        """Nothing is left."""


class CutLink:
    """The cable between two hosts is pulled, and put back after a while."""

    def __init__(self, hosts: HostPair, cut_s: float) -> None:
        self._hosts = hosts
        self._timer = threading.Timer(cut_s, hosts.other.mend)

    def plant(self, target: Target) -> None:
        self._hosts.other.cut()
        self._timer.start()

    def remove(self) -> None:
        self._timer.cancel()
        self._hosts.other.mend()


class SlowLink:
    """The link between two hosts carries a tenth of what it did."""

    def __init__(self, hosts: HostPair, cut_s: float) -> None:
        self._hosts = hosts
        hosts.limit(LINK_MBIT)

    def plant(self, target: Target) -> None:
        self._hosts.limit(LINK_MBIT // 10)

    def remove(self) -> None:
        self._hosts.limit(LINK_MBIT)


HOST_FAULTS: Mapping[str, Callable[[HostPair, float], Fault]] = {
    "lose-host": LoseHost,
    "cut-link": CutLink,
    "slow-link": SlowLink,
}
"""By the name of the drill; each takes the hosts and how long a cut lasts."""


@contextlib.contextmanager
def pair_for(config: ClusterConfig) -> Iterator[HostPair]:
    """Two hosts with room for half of a run's ranks each, gone afterwards.

    Raises ResourceError where this machine cannot make them, RecipeError where the run would not
    fit them.
    """
    problem = why_not()
    if problem:
        raise ResourceError(
            f"a drill of hosts makes two of them out of this machine, which it cannot: {problem}. "
            "Run it as root on Linux with iproute2, for example in a privileged container"
        )
    if config.num_workers < 2:
        raise RecipeError(
            "a drill of hosts needs a rank on each of two: set cluster.num_workers=2 or more"
        )
    if config.gpus_per_worker:
        raise RecipeError(
            "a drill of hosts cannot share this machine's GPUs between the hosts it makes: set "
            "cluster.gpus_per_worker=0"
        )
    num_cpus = math.ceil(config.num_workers / 2) * config.cpus_per_worker
    variables = variables_without("RAY_")
    path = variables.get("PATH", "")
    variables["PATH"] = f"{Path(sys.executable).parent}:{path}"
    with two_hosts(variables) as (head, other):
        start_ray(head, [other], num_cpus=num_cpus)
        yield HostPair(head=head, other=other)
