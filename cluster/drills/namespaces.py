"""Two real hosts on one machine: network namespaces joined by a veth pair, a Ray node in each.

Each has its own address, its own /dev/shm and its own processes; they share files and clocks.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.errors import InfrastructureError

GCS_PORT = 6379
DASHBOARD = "http://127.0.0.1:8265"
"""Of the head, seen from its own namespace."""

_GIVE_UP = "RAY_gcs_rpc_server_reconnect_timeout_s=20"
"""A host whose head is gone ends after so long, not after Ray's 60 s."""

_OBJECT_STORE_BYTES = 80 * 1024 * 1024


def why_not() -> str | None:
    """Why namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the `ip` command"
    if shutil.which("tc") is None or shutil.which("ss") is None:
        return "network namespaces need the `tc` and `ss` commands of iproute2"
    probe = f"braid-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"this kernel or container refuses network namespaces: {made.stderr.strip()}"
    private = ["ip", "netns", "exec", probe, "mount", "-t", "tmpfs", "braid", "/dev/shm"]
    mounted = subprocess.run(private, capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", probe], check=True)
    if mounted.returncode:
        return f"this kernel or container refuses mounts: {mounted.stderr.strip()}"
    return None


@dataclass(frozen=True)
class Host:
    """One namespace with one address."""

    namespace: str
    device: str
    address: str
    folder: Path
    """For this host's own files."""

    variables: Mapping[str, str]
    """All that its processes are started with."""

    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def command(self, words: Sequence[str]) -> list[str]:
        """`words`, to be run on this host, with this host's memory as /dev/shm."""
        mount = f'mount --bind {self.memory} /dev/shm && exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "sh", "-c", mount, "sh", *words]

    @property
    def cluster(self) -> str:
        """Where its Ray cluster is joined, if it is the head of one."""
        return f"{self.address}:{GCS_PORT}"

    @property
    def memory(self) -> Path:
        """Where this host's /dev/shm is seen from outside."""
        return self.folder / "shm"

    def popen(self, words: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
        """Start a process here; its output goes to `log`."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(words), stdout=output, stderr=output, env=self.variables
            )
        self.started.append(process)
        return process

    def run(self, words: Sequence[str], *, timeout_s: float) -> "subprocess.CompletedProcess[str]":
        """Run a command here to its end."""
        return subprocess.run(
            self.command(words),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self.variables,
        )

    def limit(self, rate: str, latency: str = "50ms") -> None:
        """Bound what leaves this host, such as `100mbit`."""
        words = f"tc qdisc replace dev {self.device} root tbf rate {rate} burst 64kb"
        subprocess.run(self.command([*words.split(), "latency", latency]), check=True)

    def cut(self) -> None:
        """Pull the cable."""
        _ip("-n", self.namespace, "link", "set", self.device, "down")

    def mend(self) -> None:
        """Put it back."""
        _ip("-n", self.namespace, "link", "set", self.device, "up")

    def processes(self) -> list[int]:
        """Everything that runs here."""
        answer = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True
        )
        return [int(word) for word in answer.stdout.split()]

    def kill(self) -> None:
        """End every process of this host at once and lose its memory, as a power cut does."""
        deadline = time.monotonic() + 10
        while (processes := self.processes()) and time.monotonic() < deadline:
            for number in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.05)
        for process in self.started:
            process.wait(10)
        self.started.clear()
        for path in self.memory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def two_hosts(variables: Mapping[str, str]) -> Iterator[tuple[Host, Host]]:
    """Namespaces that reach each other and nothing else; gone afterwards, whatever happened.

    `variables` are for all processes there: nothing of the person who starts them should leak in,
    such as their token or the address of their cluster.
    """
    folder = Path(tempfile.mkdtemp(prefix="bh", dir="/tmp"))
    number = os.getpid() % 250
    token = folder / "token"
    token.write_text(os.urandom(32).hex())
    hosts = []
    for side in ("a", "b"):
        own = folder / side
        own.mkdir()
        hosts.append(
            Host(
                namespace=f"braid-{folder.name}-{side}",
                device=f"{folder.name}-{side}",
                address=f"10.213.{number}.{'12'['ab'.index(side)]}",
                folder=own,
                variables={**variables, **_variables(own, token)},
            )
        )
    first, second = hosts
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for host in hosts:
            host.memory.mkdir()
            _run("mount", "-t", "tmpfs", "braid", str(host.memory))
            stack.callback(_run, "umount", "--lazy", str(host.memory))
            _ip("netns", "add", host.namespace)
            stack.callback(_ip, "netns", "del", host.namespace)
            stack.callback(host.kill)
        _ip("link", "add", first.device, "type", "veth", "peer", "name", second.device)
        for host in hosts:
            _ip("link", "set", host.device, "netns", host.namespace)
            inside = ("-n", host.namespace)
            _ip(*inside, "addr", "add", f"{host.address}/24", "dev", host.device)
            _ip(*inside, "link", "set", host.device, "up")
            _ip(*inside, "link", "set", "lo", "up")
        yield first, second


def start_ray(
    head: Host, others: Sequence[Host], *, num_cpus: float, timeout_s: float = 150
) -> None:
    """A Ray cluster with token authentication over the hosts; returns when all nodes are there."""
    ray = str(Path(sys.executable).with_name("ray"))
    words = ["start", "--head", f"--port={GCS_PORT}", "--disable-usage-stats"]
    head.popen([ray, *words, *_of_node(head, num_cpus)], head.folder / "ray.log")
    deadline = time.monotonic() + timeout_s
    while f":{GCS_PORT}" not in head.run(["ss", "-ltn"], timeout_s=10).stdout:
        if time.monotonic() > deadline:
            raise InfrastructureError(f"Ray did not start: {(head.folder / 'ray.log').read_text()}")
        time.sleep(0.2)
    for host in others:
        join_ray(host, head, num_cpus=num_cpus)
    await_nodes(head, 1 + len(others), timeout_s=timeout_s)


def await_nodes(head: Host, count: int, *, timeout_s: float = 150) -> None:
    """Return when so many nodes are there and the dashboard answers."""
    # Not `auto`: that finds any cluster whose processes are seen, and hosts see each other's.
    words = [str(count), DASHBOARD, head.cluster]
    try:
        waited = head.run([sys.executable, "-c", _WAIT, *words], timeout_s=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise InfrastructureError(
            f"{count} Ray nodes are not up after {timeout_s:g} s; this machine may be too busy"
        ) from error
    if waited.returncode:
        raise InfrastructureError(f"the hosts' Ray nodes did not come up: {waited.stderr}")


def join_ray(host: Host, head: Host, *, num_cpus: float) -> None:
    """Start a Ray node on `host`; it joins the cluster of `head` on its own time."""
    ray = str(Path(sys.executable).with_name("ray"))
    host.popen(
        ["env", _GIVE_UP, ray, "start", f"--address={head.cluster}", *_of_node(host, num_cpus)],
        host.folder / "ray.log",
    )


def _of_node(host: Host, num_cpus: float) -> list[str]:
    return [
        f"--node-ip-address={host.address}",
        f"--temp-dir={host.folder}/ray",
        f"--num-cpus={num_cpus:g}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--block",
    ]


_WAIT = """
import sys, time, urllib.error, urllib.request
import ray
while True:
    try:
        ray.init(address=sys.argv[3], log_to_driver=False, logging_level="ERROR")
        break
    except ConnectionError:
        time.sleep(0.3)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(0.2)
while True:
    try:
        urllib.request.urlopen(sys.argv[2] + "/api/version")
        break
    except urllib.error.HTTPError:
        break
    except OSError:
        time.sleep(0.2)
"""


def _variables(folder: Path, token: Path) -> dict[str, str]:
    return {
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        # Ray would have its workers wait for everything else on this machine.
        "RAY_worker_niceness": "0",
        # A host that is gone is noticed after 5 s, not after Ray's 15.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "5",
    }


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
