"""Ask every node, by a small task, what it has installed and whether it sees the run folder."""

import platform
import time
import uuid
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.preflight import Node, NodeReport
from cluster.waiting import Waiting

_PACKAGES = ("torch", "ray")
_TRIES = 6
_TRY_S = 0.5


def versions() -> dict[str, str]:
    """Versions that must be equal on all nodes; an absent package is missing."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            # Without the local part: CPU and CUDA builds of one release work together.
            found[package] = metadata.version(package).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


def report_of_node(host: str, folder: str, token: str) -> NodeReport:
    """What this node sees. Runs as a task on the node."""
    return NodeReport(host=host, versions=versions(), sees_folder=_answer(Path(folder), token))


def _answer(folder: Path, token: str) -> bool:
    """Read the driver's file and leave one beside it."""
    for _ in range(_TRIES):
        try:
            seen = (folder / f".sees-{token}").read_text()
            (folder / f".seen-{token}-{uuid.uuid4().hex}").write_text(token)
        except OSError:
            # A network file system shows a new file to other hosts only after a while.
            time.sleep(_TRY_S)
        else:
            return seen == token
    return False


def ask_nodes(nodes: Sequence[Node], folder: Path, waiting: Waiting) -> list[NodeReport]:
    """Reports of the nodes. Writes to `folder` and leaves nothing there."""
    token = uuid.uuid4().hex
    (folder / f".sees-{token}").write_text(token)
    try:
        return _ask(nodes, folder, token, waiting)
    finally:
        for path in folder.glob(f".see*-{token}*"):
            path.unlink()


def _ask(nodes: Sequence[Node], folder: Path, token: str, waiting: Waiting) -> list[NodeReport]:
    task = ray.remote(num_cpus=0, max_retries=0)(report_of_node)
    refs = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        ).remote(node.host, str(folder), token): node
        for node in nodes
    }
    pending = list(refs)
    while pending:
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=0.5)
        missing = ", ".join(refs[ref].host for ref in pending)
        if pending and waiting.overrun(f"no answer from {missing}"):
            break
    return [
        NodeReport(host=node.host, versions={}, sees_folder=False, problem="did not answer")
        if ref in pending
        else _report(ref, node)
        for ref, node in refs.items()
    ]


def _report(ref: "ray.ObjectRef[NodeReport]", node: Node) -> NodeReport:
    try:
        return ray.get(ref)
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        remedy = "install this package there, or submit the run with `braid submit`"
        return NodeReport(
            host=node.host,
            versions={},
            sees_folder=False,
            problem=f"cannot run a task of this package ({reason}); {remedy}",
        )
