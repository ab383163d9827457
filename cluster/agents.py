"""One agent per host of a run; the driver's own host needs no process for it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.host_agent import HostAgent, Target
from cluster.rescuer import Charge
from cluster.watchdog.evidence import RankEvidence
from cluster.watchdog.spy import StackDump


class Agents:
    """Asks agents without waiting for them. Started as hosts come up, ended by `close`."""

    def __init__(self, own_node: str, charge: Charge) -> None:
        """`charge` is what each of them has looked after, should this process die."""
        self._own_node = own_node
        self._charge = charge
        self._here = HostAgent()
        self._actors: dict[str, Any] = {}
        self._asked: dict[str, ray.ObjectRef[Any]] = {}
        self._answered = {own_node}

    def open(self, nodes: Sequence[str]) -> None:
        """Have an agent on each of these nodes; does not wait for it."""
        for node in nodes:
            if node == self._own_node:
                self._here.guard(self._charge)
            elif node not in self._actors:
                actor = ray.remote(max_restarts=0)(HostAgent)
                self._actors[node] = actor.options(
                    num_cpus=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                ).remote()
                self._actors[node].guard.remote(self._charge)

    def is_starting(self, node: str) -> bool:
        """Whether the agent there has not answered yet: that says nothing of the host."""
        return node in self._actors and node not in self._answered

    def observe(
        self, targets: Mapping[str, Sequence[Target]]
    ) -> dict[str, dict[int, RankEvidence]]:
        """The newest observations that have arrived, by node; asks for the next ones. A node that
        does not answer is missing."""
        found: dict[str, dict[int, RankEvidence]] = {}
        for node, ranks in targets.items():
            if node == self._own_node:
                found[node] = self._here.observe(ranks)
            elif node in self._actors and node not in self._asked:
                self._asked[node] = self._actors[node].observe.remote(ranks)
        if not self._asked:
            return found
        done, _ = ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=0)
        for node, ref in list(self._asked.items()):
            if ref not in done:
                continue
            del self._asked[node]
            try:
                found[node] = ray.get(ref)
                self._answered.add(node)
            except ActorUnavailableError:
                # A connection that may heal: asked again.
                continue
            except RayError:
                # The host will be found silent; a new agent is started with the next ranks there.
                self._actors.pop(node, None)
                self._answered.discard(node)
        return found

    def stacks(
        self, targets: Mapping[str, Sequence[Target]], *, limit_s: float
    ) -> dict[int, StackDump]:
        """Stacks of all ranks, as far as they come within about `limit_s`."""
        asked = {
            self._actors[node].stacks.remote(ranks, limit_s): node
            for node, ranks in targets.items()
            if node in self._actors
        }
        found = self._here.stacks(targets.get(self._own_node, ()), limit_s)
        if asked:
            done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=limit_s)
            for ref in done:
                with suppress(RayError):
                    found.update(ray.get(ref))
        return found

    def end(self, node: str, process: int) -> None:
        """End a process of that node at once; does not wait for it."""
        if node == self._own_node:
            self._here.end(process)
        elif node in self._actors:
            self._actors[node].end.remote(process)

    def remove(self, folder: str) -> None:
        """Delete a folder of this name on all hosts, those that answer soon."""
        self._here.remove(folder)
        refs = [actor.remove.remote(folder) for actor in self._actors.values()]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=2.0)

    def close(self) -> None:
        """End all agents, since the run has ended in order."""
        self._here.release()
        refs = [actor.release.remote() for actor in self._actors.values()]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=2.0)
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._asked.clear()
