"""Two real hosts on one machine: network namespaces joined by a veth pair, a Ray node in each."""

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

ROOT = Path(__file__).resolve().parents[2]
GCS_PORT = 6379
DASHBOARD = "http://127.0.0.1:8265"
"""Of the head, seen from its own namespace."""

_OBJECT_STORE_BYTES = 80 * 1024 * 1024


def why_not() -> str | None:
    """Why namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the `ip` command"
    probe = f"braid-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"this kernel or container refuses network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
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
    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def command(self, words: Sequence[str]) -> list[str]:
        """`words`, to be run on this host."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def popen(self, words: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
        """Start a process here; its output goes to `log`."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(words), stdout=output, stderr=output, env=self.variables, cwd=ROOT
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
            cwd=ROOT,
        )

    def limit(self, rate: str, latency: str = "50ms") -> None:
        """Bound what leaves this host, such as `100mbit`."""
        words = f"tc qdisc replace dev {self.device} root tbf rate {rate} burst 64kb"
        subprocess.run(self.command([*words.split(), "latency", latency]), check=True)

    def processes(self) -> list[int]:
        """Everything that runs here."""
        answer = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True
        )
        return [int(word) for word in answer.stdout.split()]

    def kill(self) -> None:
        """End every process of this host at once, as a power cut does."""
        deadline = time.monotonic() + 10
        while (processes := self.processes()) and time.monotonic() < deadline:
            for number in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.05)
        for process in self.started:
            process.wait(10)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Namespaces that reach each other and nothing else; gone afterwards, whatever happened."""
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
                namespace=f"braid-{os.getpid()}-{side}",
                device=f"bd{os.getpid() % 10**7}{side}",
                address=f"10.213.{number}.{'12'['ab'.index(side)]}",
                folder=own,
                variables=_variables(own, token),
            )
        )
    first, second = hosts
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for host in hosts:
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


def start_ray(head: Host, others: Sequence[Host], *, num_cpus: int, timeout_s: float = 150) -> None:
    """A Ray cluster with token authentication over the hosts; returns when all nodes are there."""
    ray = str(Path(sys.executable).with_name("ray"))
    common = [f"--num-cpus={num_cpus}", f"--object-store-memory={_OBJECT_STORE_BYTES}", "--block"]
    head.popen(
        [
            *(ray, "start", "--head", f"--port={GCS_PORT}", "--disable-usage-stats"),
            *(f"--node-ip-address={head.address}", f"--temp-dir={head.folder}/ray", *common),
        ],
        head.folder / "ray.log",
    )
    deadline = time.monotonic() + timeout_s
    while f":{GCS_PORT}" not in head.run(["ss", "-ltn"], timeout_s=10).stdout:
        assert time.monotonic() < deadline, (head.folder / "ray.log").read_text()
        time.sleep(0.2)
    for host in others:
        host.popen(
            [
                *(ray, "start", f"--address={head.address}:{GCS_PORT}"),
                *(f"--node-ip-address={host.address}", f"--temp-dir={host.folder}/ray", *common),
            ],
            host.folder / "ray.log",
        )
    waited = head.run(
        [sys.executable, "-c", _WAIT, str(1 + len(others)), DASHBOARD], timeout_s=timeout_s
    )
    assert waited.returncode == 0, waited.stderr + (others[0].folder / "ray.log").read_text()


_WAIT = """
import sys, time, urllib.error, urllib.request
import ray
while True:
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
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
    """Nothing of the person who runs the tests: their token or Ray address must not leak in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        # A host that is gone is noticed after 3 s, not after Ray's 15.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
    }


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
