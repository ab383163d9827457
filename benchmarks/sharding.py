"""Hierarchical sharding on 4 ranks beside plain FSDP2: step time, bytes per axis, peak memory.

    python -m benchmarks.sharding [--width 512] [--blocks 12] [--rounds 2] [--rate 1gbit] [--json]

Step times are taken of all contenders in turns in the same processes; `--rate` puts half of the
ranks on another host behind such a link (needs root). Peak memory is taken in processes of its own
for every contender: resident memory above what the process had before there was a model, whose
activations are kept small, as a share of what `parallel.hierarchy.volume` says.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from benchmarks.harness import Result, options
from benchmarks.sharding_rank import PEER, RANKS, WIDTHS, worker

ROOT = Path(__file__).resolve().parents[1]


def start_all(given: Namespace, what: str, rate: str) -> dict:
    """Measure `what` on all ranks, on this host or on two with a link between them."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        prefixes, address = [[] for _ in range(RANKS)], "127.0.0.1"
        if rate:
            prefixes, address = enter_two_hosts(stack, rate)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        out = Path(folder) / "result.json"
        common = {**vars(given), "address": address, "port": port, "out": out, "what": what}
        common.pop("json")
        variables = dict(os.environ)
        if what != "times":
            # Freed memory goes back at once: what is resident is what is used.
            variables |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        processes = []
        for rank, prefix in enumerate(prefixes):
            words = [f"--{name}={value}" for name, value in (common | {"rank": rank}).items()]
            command = [*prefix, sys.executable, "-m", "benchmarks.sharding", *words]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=variables))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit(f"ranks ended with {codes} while measuring {what}")
        return json.loads(out.read_text())


def enter_two_hosts(stack: contextlib.ExitStack, rate: str) -> tuple[list[list[str]], str]:
    """How to start each rank on its host, and where they meet."""
    from tests.hosts.namespaces import two_hosts, why_not

    if reason := why_not():
        raise SystemExit(f"--rate cannot be measured here: {reason}")
    hosts = stack.enter_context(two_hosts())
    for host in hosts:
        host.limit(rate)
    prefixes = [
        host.command(["env", f"GLOO_SOCKET_IFNAME={host.device}"])
        for host in hosts
        for _ in range(RANKS // 2)
    ]
    return prefixes, hosts[0].address


def report(given: Namespace, timed: dict, memory: dict[str, dict]) -> Result:
    """Medians, bytes per axis, peaks, and ours over FSDP2, turn by turn."""
    result = Result(name="sharding")
    theirs = timed["times"][PEER]
    result.peers[PEER] = {
        "step_s": statistics.median(theirs),
        "peak_mb": memory[PEER]["measured"] / 1e6,
    }
    for name in WIDTHS:
        own, peak = timed["times"][name], memory[name]
        result.braid |= {
            f"{name}/step_s": statistics.median(own),
            f"{name}/waited_s": statistics.median(timed["waited"][name]),
            f"{name}/peak_mb": peak["measured"] / 1e6,
            f"{name}/formula_mb": peak["formula"] / 1e6,
            f"{name}/peak_over_formula": peak["measured"] / peak["formula"],
        }
        for axis, sent in timed["sent"][name].items():
            result.braid[f"{name}/sent_mb {axis}"] = sent / 1e6
        result.ratio(f"{name}/{PEER}", own, theirs)
    return result


def main() -> None:
    """Run all ranks of all measurements, or be one rank of one."""
    given = options(
        __doc__,
        width=512,
        blocks=12,
        rounds=2,
        tokens=64,
        turns=5,
        dtype="fp32",
        quantized=0,
        rate="",
        what="",
        rank=-1,
        address="",
        port=0,
        out="",
    )
    if given.rank >= 0:
        worker(given)
        return
    timed = start_all(given, "times", given.rate)
    memory = {name: start_all(given, name, "") for name in (*WIDTHS, PEER)}
    report(given, timed, memory).show(as_json=given.json)


if __name__ == "__main__":
    main()
