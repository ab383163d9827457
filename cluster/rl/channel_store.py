"""The store at which channels for weights meet, in a process of its own beside the driver.

The driver itself imports no torch. Like the store of the training ranks it knows no token and
listens on the address of its host alone, which is the loopback on a cluster of one machine.
"""

import socket
from datetime import timedelta
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.preflight import Node
from cluster.worker import load


class ChannelStore:
    """An actor that holds the server of a TCPStore."""

    def __init__(self) -> None:
        self._server: object | None = None

    def open(self, address: str) -> int:
        """Serve on a free port of `address`, and say which."""
        make = load("torch.distributed:TCPStore")
        listener = socket.create_server(
            (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=256
        )
        port = int(listener.getsockname()[1])
        self._server = make(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=60),
            master_listen_fd=listener.detach(),
        )
        return port


def start_store(node: Node) -> Any:
    """The actor, on `node`."""
    actor = ray.remote(max_restarts=0)(ChannelStore)
    return actor.options(
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
    ).remote()
