"""Whether the cluster can hold the run, decided before any actor exists. Pure decisions.

Guarantees, each asserted in tests/cluster/test_preflight.py:
- the table has a row per living node and says for each how many workers fit and what it lacks;
- a run that does not fit raises ResourceError with the table and a remedy;
- nodes with other versions of Python, torch or Ray than the driver's, without this package, or
  without the run folder are all named in one error.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import ResourceError

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one worker takes, and how many there are."""

    workers: int
    cpus: float
    gpus: float
    memory_bytes: int
    spares: int = 0
    """Processes beyond the workers, which wait and need no cores for it."""

    rollouts: int = 0
    """Processes that sample with resources of their own."""

    rollout_cpus: float = 1.0
    rollout_gpus: float = 0.0
    rollout_memory_bytes: int = 0

    @property
    def full_bundles(self) -> int:
        """Processes that the cluster must have room for as for workers."""
        return self.workers + (self.spares if self.gpus or self.memory_bytes else 0)

    def bundles(self) -> list[dict[str, float]]:
        """What to reserve: one for each worker, then one for each spare, then one for each that
        samples."""
        waiting = {name: amount for name, amount in self.bundle().items() if name != "CPU"}
        # Ray knows no empty bundle; a byte is free even where no core is.
        nothing = {"memory": 1.0}
        spares = [waiting or nothing] * self.spares
        rollouts = [self.rollout_bundle() or nothing] * self.rollouts
        return [self.bundle()] * self.workers + spares + rollouts

    def bundle(self) -> dict[str, float]:
        """One worker's resources in Ray's names."""
        return _resources(self.cpus, self.gpus, self.memory_bytes)

    def rollout_bundle(self) -> dict[str, float]:
        """The same of one that samples."""
        return _resources(self.rollout_cpus, self.rollout_gpus, self.rollout_memory_bytes)

    @property
    def first_rollout_bundle(self) -> int:
        """Place of the first bundle that is for sampling."""
        return self.workers + self.spares


def _resources(cpus: float, gpus: float, memory_bytes: int) -> dict[str, float]:
    wanted = {"CPU": cpus, "GPU": gpus, "memory": float(memory_bytes)}
    return {name: amount for name, amount in wanted.items() if amount > 0}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One living machine of the cluster."""

    node_id: str
    host: str
    address: str
    is_head: bool
    resources: Mapping[str, float]
    """Totals in Ray's names; memory in bytes."""


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What a process on a node sees."""

    host: str
    versions: Mapping[str, str]
    """Of python, torch and ray; an absent package is missing."""

    sees_folder: bool
    """Whether it read, in the run folder, what the driver had written there."""

    problem: str = ""
    """Why the rest could not be found out."""


def living_nodes(ray_nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """From the answer of `ray.nodes()`. Hosts that share a name go by their address."""
    names = Counter(node["NodeManagerHostname"] for node in ray_nodes if node["Alive"])
    return [
        Node(
            node_id=node["NodeID"],
            host=node["NodeManagerHostname"]
            if names[node["NodeManagerHostname"]] == 1
            else node["NodeManagerAddress"],
            address=node["NodeManagerAddress"],
            is_head="node:__internal_head__" in node["Resources"],
            resources=node["Resources"],
        )
        for node in ray_nodes
        if node["Alive"]
    ]


def fits(node: Node, needs: Needs) -> int:
    """How many workers the node can hold when nothing else runs there."""
    return _times(node.resources, needs.bundle(), needs.full_bundles)


def capacity_table(nodes: Sequence[Node], needs: Needs) -> str:
    """Node, what it has, how many workers it holds, and what one worker lacks there."""
    rows = [("node", "has", "holds", "lacks for one worker")]
    for node in nodes:
        rows.append(
            (
                f"{node.host} ({node.address})",
                _amounts({name: node.resources.get(name, 0.0) for name in _names(needs)}),
                str(fits(node, needs)),
                _amounts(_lacking(node, needs)) or "-",
            )
        )
    spares = f" and {needs.spares} spares" if needs.spares else ""
    need = f"need: {needs.workers} workers{spares}, each {_amounts(needs.bundle())}"
    return "\n".join([need, *_aligned(rows)])


def check_capacity(nodes: Sequence[Node], needs: Needs) -> str:
    """The table. Raises ResourceError, with the table, where the workers do not fit."""
    table = capacity_table(nodes, needs)
    held = sum(fits(node, needs) for node in nodes)
    if held >= needs.full_bundles:
        return "\n".join([table, *check_rollouts(nodes, needs)])
    if held >= needs.workers:
        raise ResourceError(
            f"the cluster holds {held} of {needs.full_bundles} processes, {needs.spares} of them "
            f"spares; lower cluster.spares to {held - needs.workers}, or add nodes\n{table}"
        )
    remedy = (
        f"lower cluster.num_workers to {held}, lower what a worker reserves, or add nodes"
        if held
        else "lower what a worker reserves (cluster.cpus_per_worker, cluster.gpus_per_worker, "
        "cluster.memory_per_worker_gib), or add nodes"
    )
    raise ResourceError(
        f"the cluster holds {held} of the {needs.workers} workers of cluster.num_workers; "
        f"{remedy}\n{table}"
    )


def check_rollouts(nodes: Sequence[Node], needs: Needs) -> list[str]:
    """What to say of the processes that sample. Raises ResourceError where there is no room for
    them beside the workers: one node lacks what one of them takes, or all together lack it."""
    if not needs.rollouts:
        return []
    bundle = needs.rollout_bundle()
    told = f"and {needs.rollouts} that sample, each {_amounts(bundle) or 'nothing reserved'}"
    alone = sum(_times(node.resources, bundle, needs.rollouts) for node in nodes)
    lacking = {}
    for name in bundle:
        wanted = sum(one.get(name, 0.0) for one in needs.bundles())
        have = sum(node.resources.get(name, 0.0) for node in nodes)
        if wanted > have + 1e-9:
            lacking[name] = wanted - have
    if alone >= needs.rollouts and not lacking:
        return [told]
    missing = _amounts(lacking) or "room on one node"
    raise ResourceError(
        f"the cluster has no room for {needs.rollouts} processes that sample beside "
        f"{needs.full_bundles} that train (missing: {missing}); lower rollout.workers or what one "
        "of them reserves (rollout.cpus_per_worker, rollout.gpus_per_worker, "
        "rollout.memory_per_worker_gib), have them share the ranks' devices "
        f"(rollout.colocated_workers), or add nodes\n{capacity_table(nodes, needs)}\n{told}"
    )


def _times(have: Mapping[str, float], bundle: Mapping[str, float], most: int) -> int:
    counts = [int(have.get(name, 0.0) / amount + 1e-9) for name, amount in bundle.items()]
    return min([*counts, most])


def check_nodes(
    reports: Sequence[NodeReport], versions: Mapping[str, str], run_folder: str
) -> None:
    """Raise ResourceError where a node differs from the driver or does not see its run folder."""
    faults = [fault for report in reports for fault in _faults(report, versions, run_folder)]
    if faults:
        raise ResourceError("nodes differ from the driver:\n" + "\n".join(faults))


def _faults(report: NodeReport, versions: Mapping[str, str], run_folder: str) -> list[str]:
    if report.problem:
        return [f"{report.host}: {report.problem}"]
    faults = [
        f"{report.host}: {name} {report.versions.get(name, 'is missing')}, the driver has "
        f"{version}; install the same on all nodes"
        for name, version in versions.items()
        if report.versions.get(name) != version
    ]
    if not report.sees_folder:
        faults.append(
            f"{report.host}: cannot read or write the driver's run folder {run_folder}; set "
            "run.dir to a folder that all nodes share"
        )
    return faults


def _names(needs: Needs) -> list[str]:
    return list(needs.bundle())


def _lacking(node: Node, needs: Needs) -> dict[str, float]:
    return {
        name: amount - node.resources.get(name, 0.0)
        for name, amount in needs.bundle().items()
        if node.resources.get(name, 0.0) < amount
    }


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(
        f"{amount / GIB:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in resources.items()
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
