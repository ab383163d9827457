"""Sequence groups chosen every round against one group size for the whole run, in real training.

Two hosts (network namespaces, needs root) of two ranks each on a limited link train the same
batches, whose lengths are drawn from Wikipedia's, alternately with the planner free to choose and
held to one size: the smallest that can hold the longest sequence, with Braid's attention and with
DeepSpeed-Ulysses' all-to-all, and the best size for each batch.

    PYTHONPATH=. python benchmarks/groups.py --json
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.groups_rank import PEERS, Setting
from benchmarks.harness import Result, options
from tests.hosts.namespaces import Host, two_hosts, why_not

RANKS_PER_HOST = 2


def main() -> None:
    """Measure and print."""
    defaults = Setting()
    chosen = options(
        __doc__,
        rate="1gbit",
        batches=defaults.batches,
        sequences=defaults.sequences,
        rank_tokens=defaults.rank_tokens,
        hidden=defaults.hidden,
    )
    if reason := why_not():
        print(f"not measured: {reason}", file=sys.stderr)
        raise SystemExit(3)
    setting = replace(
        defaults,
        batches=chosen.batches,
        sequences=chosen.sequences,
        rank_tokens=chosen.rank_tokens,
        hidden=chosen.hidden,
    )
    seconds = measure(setting, chosen.rate)
    result = Result(name="groups")
    result.braid = {"step_s": sum(seconds["auto"]) / len(seconds["auto"])}
    for name in PEERS:
        result.peers[name] = {"step_s": sum(seconds[name]) / len(seconds[name])}
        result.ratio(f"speedup_over_{name}", seconds[name], seconds["auto"])
    result.show(as_json=chosen.json)


def measure(setting: Setting, rate: str) -> dict[str, list[float]]:
    """Seconds of every step by who planned it, over two hosts whose link carries `rate`."""
    with tempfile.TemporaryDirectory() as folder, two_hosts() as hosts:
        for host in hosts:
            host.limit(rate)
        out = Path(folder) / "seconds.json"
        port = str(20_000 + int(time.time()) % 20_000)
        processes = [
            _start(host, RANKS_PER_HOST * number + local, hosts[0].address, port, setting, out)
            for number, host in enumerate(hosts)
            for local in range(RANKS_PER_HOST)
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            logs = "\n".join((host.folder / "rank.log").read_text()[-2000:] for host in hosts)
            raise SystemExit(f"ranks ended with {codes}\n{logs}")
        found: dict[str, list[float]] = json.loads(out.read_text())
    return found


def _start(
    host: Host, rank: int, master: str, port: str, setting: Setting, out: Path
) -> "subprocess.Popen[bytes]":
    # gloo advertises the address of the interface that it is told.
    own = replace(host, variables={**host.variables, "GLOO_SOCKET_IFNAME": host.device})
    words = [sys.executable, "-m", "benchmarks.groups_rank", str(rank), master, port]
    return own.popen([*words, setting.to_json(), str(out)], host.folder / "rank.log")


if __name__ == "__main__":
    main()
