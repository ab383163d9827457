"""A benchmark's ranks as processes, on this host or on two with a limited link between them."""

import contextlib
import os
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from comms import groups
from comms.config import RankEnvironment

ROOT = Path(__file__).resolve().parents[1]


def start_ranks(
    module: str, arguments: Namespace, out: Path, *, variables: Mapping[str, str] | None = None
) -> None:
    """Run `python -m module` as every rank, with `arguments` and where to meet; wait for all.

    With `arguments.rate`, such as `1gbit`, half of the ranks are on another host (a network
    namespace, which needs root) behind such a link. Rank 0 is to write `out`. `variables` are
    added to the environment.
    """
    with contextlib.ExitStack() as stack:
        prefixes, address = [[] for _ in range(arguments.ranks)], "127.0.0.1"
        if arguments.rate:
            from tests.hosts.namespaces import two_hosts, why_not

            if reason := why_not():
                raise SystemExit(f"--rate cannot be measured here: {reason}")
            hosts = stack.enter_context(two_hosts())
            for host in hosts:
                host.limit(arguments.rate)
            prefixes = [
                host.command(["env", f"GLOO_SOCKET_IFNAME={host.device}"])
                for host in hosts
                for _ in range(arguments.ranks // 2)
            ]
            address = hosts[0].address
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        given = {**vars(arguments), "address": address, "port": port, "out": out}
        given.pop("json")
        processes = []
        for rank, prefix in enumerate(prefixes):
            words = [f"--{name}={value}" for name, value in (given | {"rank": rank}).items()]
            command = [*prefix, sys.executable, "-m", module, *words]
            environment = {**os.environ, **(variables or {})}
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")


def join(arguments: Namespace) -> None:
    """Meet the other ranks, as one of them."""
    environment = RankEnvironment(
        rank=arguments.rank,
        world_size=arguments.ranks,
        local_rank=arguments.rank,
        local_world_size=arguments.ranks,
        host="127.0.0.1",
        master_address=arguments.address,
        master_port=arguments.port,
    )
    groups.join(environment, deadline_s=60)
