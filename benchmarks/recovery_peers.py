"""The same fault in a run under torchrun elastic, Ray Train and torchft; used by recovery.py."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.run_folder import read_lines

ROOT = Path(__file__).resolve().parent.parent
RANK = str(ROOT / "benchmarks/recovery_rank.py")
WARM_STEPS = 20
_POLL_S = 0.01
_START_S = 180.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of one fault."""

    detected_s: float | None
    """From the fault to the first sign of it; None where there was none within the patience."""

    resumed_s: float | None
    """From the fault to the end of the next step."""

    lost_steps: int | None
    whole_s: float | None = None
    """From the fault to the end of the next step of all ranks."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done to a process, and how long a sign of it is waited for."""

    name: str
    number: signal.Signals
    patience_s: float


Command = Callable[[str, Path, str], list[tuple[list[str], Mapping[str, str]]]]
"""Interpreter, folder and recipe to the commands of a peer, each with its own variables."""


def torchrun(python: str, folder: Path, recipe: str) -> list[tuple[list[str], Mapping[str, str]]]:
    """Two workers of one agent, restarted together."""
    elastic = [python, "-m", "torch.distributed.run", "--max-restarts", "100"]
    mine = ["--standalone", "--nproc-per-node", "2", RANK, "torchrun", str(folder), recipe]
    return [([*elastic, *mine], {})]


def ray_train(python: str, folder: Path, recipe: str) -> list[tuple[list[str], Mapping[str, str]]]:
    """A TorchTrainer with two workers."""
    return [([python, RANK, "ray-train", str(folder), recipe], {"RAY_AUTH_MODE": "token"})]


def torchft(python: str, folder: Path, recipe: str) -> list[tuple[list[str], Mapping[str, str]]]:
    """A lighthouse and two replica groups of one worker, each restarted by its own torchrun."""
    port = _free_port()
    lighthouse = [str(Path(python).with_name("torchft_lighthouse")), "--min_replicas", "1"]
    lighthouse += ["--quorum_tick_ms", "100", "--join_timeout_ms", "10000"]
    commands: list[tuple[list[str], Mapping[str, str]]] = [
        ([*lighthouse, "--bind", f"[::]:{port}"], {})
    ]
    for group in range(2):
        elastic = [python, "-m", "torch.distributed.run", "--max-restarts", "100"]
        mine = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        mine += ["--nproc-per-node", "1", RANK, "torchft", str(folder), recipe]
        own = {
            "TORCHFT_LIGHTHOUSE": f"http://localhost:{port}",
            "REPLICA_GROUP_ID": str(group),
            "NUM_REPLICA_GROUPS": "2",
        }
        commands.append(([*elastic, *mine], own))
    return commands


PEERS: Mapping[str, tuple[Command, str]] = {
    "torchrun elastic": (torchrun, "torch"),
    "Ray Train": (ray_train, "ray.train"),
    "torchft": (torchft, "torchft"),
}
"""By name: how it is started, and the module that it needs."""


def why_not(python: str, module: str) -> str:
    """Why the interpreter cannot run a peer; empty where it can."""
    tried = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True)
    return tried.stderr.strip().rpartition("\n")[2] if tried.returncode else ""


def measure_peer(command: Command, python: str, recipe: str, fault: Fault) -> Measured:
    """Start the peer, let it train, plant the fault in its rank 1, and see what comes of it."""
    with tempfile.TemporaryDirectory(prefix="braid-peer-") as name:
        folder = Path(name)
        with started(command(python, folder, recipe), folder / "peer.log"):
            _await(lambda: _least(diary(folder)) >= WARM_STEPS, _START_S, folder)
            lines = [line for line in diary(folder) if line["rank"] == 1]
            process, generation = lines[-1]["process"], _processes(diary(folder))
            at_s = time.time()
            os.kill(process, fault.number)
            limit_s = time.monotonic() + fault.patience_s
            while time.monotonic() < limit_s and not _whole(diary(folder), at_s, generation):
                time.sleep(_POLL_S)
            return _measured(diary(folder), at_s, generation)


def diary(folder: Path) -> list[dict[str, Any]]:
    """What the ranks wrote."""
    return read_lines(folder / "ranks.jsonl")


@contextmanager
def started(commands: list[tuple[list[str], Mapping[str, str]]], log: Path) -> Iterator[None]:
    """The commands as processes of their own sessions, ended with all they started."""
    common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with ExitStack() as stack, log.open("ab") as output:
        for command, own in commands:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **common, **own},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            stack.callback(_end, process)
        yield


def _end(process: "subprocess.Popen[bytes]") -> None:
    session = _session(process.pid)
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for other in session:
        if other != process.pid:
            _kill(other)


def _session(leader: int) -> list[int]:
    """Processes of a session; those that torchrun starts are in it or in one of their own."""
    import psutil

    try:
        children = psutil.Process(leader).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child.pid for child in children]


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _await(holds: Callable[[], bool], limit_s: float, folder: Path) -> None:
    until_s = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > until_s:
            raise SystemExit(
                f"a peer did not train within {limit_s:g} s:\n{(folder / 'peer.log').read_text()}"
            )
        time.sleep(0.1)


def _least(lines: list[dict[str, Any]]) -> int:
    """The step that all ranks have done."""
    steps = {0: 0, 1: 0} | {line["rank"]: line["step"] for line in lines if line["kind"] == "step"}
    return min(steps.values())


def _processes(lines: list[dict[str, Any]]) -> set[int]:
    return {line["process"] for line in lines}


def _next_steps(lines: list[dict[str, Any]], at_s: float, before: set[int]) -> list[dict[str, Any]]:
    """Steps after the standstill: of new processes, or of one that had an error."""
    found = []
    erred = set[int]()
    for line in lines:
        if line["time"] <= at_s:
            continue
        if line["kind"] == "error":
            erred.add(line["process"])
        elif line["kind"] == "step" and (line["process"] not in before or line["process"] in erred):
            found.append(line)
    return found


def _whole(lines: list[dict[str, Any]], at_s: float, before: set[int]) -> bool:
    return {line["rank"] for line in _next_steps(lines, at_s, before)} == {0, 1}


def _measured(lines: list[dict[str, Any]], at_s: float, before: set[int]) -> Measured:
    signs = [
        line["time"] - at_s
        for line in lines
        if line["time"] > at_s and (line["kind"] == "error" or line["process"] not in before)
    ]
    steps = _next_steps(lines, at_s, before)
    done = max(
        (line["step"] for line in lines if line["kind"] == "step" and line["time"] <= at_s),
        default=0,
    )
    whole = {line["rank"]: line["time"] - at_s for line in reversed(steps)}
    return Measured(
        detected_s=min(signs, default=None),
        resumed_s=steps[0]["time"] - at_s if steps else None,
        lost_steps=max(0, done - (steps[0]["step"] - 1)) if steps else None,
        whole_s=max(whole.values()) if len(whole) == 2 else None,
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
