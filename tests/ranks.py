"""Run a function on several gloo ranks of this machine and get its results back."""

import contextlib
import multiprocessing
import pickle
import random
import socket
from collections.abc import Callable
from typing import Any

import torch

from comms import groups
from comms.config import RankEnvironment


def free_port() -> int:
    """A port that nobody listens on right now, and that the system gives to no connection of its
    own before it is used: those come from higher numbers."""
    while True:
        port = random.SystemRandom().randint(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_on_ranks(ranks: int, body: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`body(rank, *arguments)` of every rank, in processes that have joined a gloo group.

    None for a rank that ended itself, without an error, before it could answer.
    """
    # Forked from the server that has imported torch: starting a rank takes no time.
    results = multiprocessing.get_context("forkserver").SimpleQueue()
    context = torch.multiprocessing.start_processes(
        _enter,
        (ranks, free_port(), body, arguments, results),
        nprocs=ranks,
        join=False,
        start_method="forkserver",
    )
    # Read before joining: a process does not end while its result waits in a full pipe.
    found: dict[int, Any] = {}
    while not context.join(timeout=0.05):
        while not results.empty():
            found.update([results.get()])
    while not results.empty():
        found.update([results.get()])
    return [pickle.loads(found[rank]) if rank in found else None for rank in range(ranks)]


def _enter(
    rank: int, ranks: int, port: int, body: Callable[..., Any], arguments: Any, results: Any
) -> None:
    torch.set_num_threads(1)
    groups.join(RankEnvironment.on_this_machine(rank, ranks, port), deadline_s=200)
    # As bytes: a tensor would be shared with a process that has ended when it is looked at.
    results.put((rank, pickle.dumps(body(rank, *arguments))))
    groups.leave()
