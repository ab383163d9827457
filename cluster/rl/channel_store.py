"""The store at which channels for weights meet, in a process of its own beside the driver.

The driver itself imports no torch. Where the process ends, another takes its place: without one,
nobody would get new weights any more. Like the store of the training ranks it knows no token and
listens on the address of its host alone, which is the loopback on a cluster of one machine.
"""

import socket
import threading
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
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

    def serve(self) -> None:
        """Does not return, so that the end of the process is noticed by it."""
        threading.Event().wait()


class StoreKeeper:
    """Has a store where the driver is. The conducting thread calls it, but for `close`."""

    def __init__(self, node: Node, *, start_limit_s: float) -> None:
        self._node = node
        self._start_limit_s = start_limit_s
        self._actor: Any = None
        self._serving: ray.ObjectRef[Any] | None = None

    @property
    def refs(self) -> "list[ray.ObjectRef[Any]]":
        """What to wait for."""
        return [] if self._serving is None else [self._serving]

    def open(self) -> tuple[str, int]:
        """Start a store, and say its host and port once it serves. Raises RayError where it does
        not."""
        self.close()
        actor = ray.remote(max_restarts=0)(ChannelStore)
        self._actor = actor.options(
            num_cpus=0,
            max_concurrency=2,
            scheduling_strategy=NodeAffinitySchedulingStrategy(self._node.node_id, soft=False),
        ).remote()
        port: int = ray.get(
            self._actor.open.remote(self._node.address), timeout=self._start_limit_s
        )
        self._serving = self._actor.serve.remote()
        return self._node.address, port

    def lost(self, done: "Collection[ray.ObjectRef[Any]]") -> bool:
        """Whether the store is gone, by the `refs` that are done."""
        if self._serving is None or self._serving not in done:
            return False
        try:
            ray.get(self._serving)
        except ActorUnavailableError:
            self._serving = self._actor.serve.remote()
            return False
        except RayError:
            self._serving = None
        return True

    def close(self) -> None:
        """End it."""
        self._serving = None
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
