"""Run a function in several processes of this machine, each of which imports nothing anew."""

import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any


def start_processes(count: int, body: Callable[..., Any], *arguments: Any) -> tuple[list[Any], Any]:
    """Processes that run `body(number, *arguments)`, and the queue on which each answers once: its
    number, and the pickled result or error."""
    context = multiprocessing.get_context("forkserver")
    results = context.SimpleQueue()
    workers = [
        context.Process(target=_run, args=(number, body, arguments, results), daemon=True)
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    return workers, results


def collect(workers: list[Any], results: Any) -> list[Any]:
    """What each returned. Raises what one raised, and ends the others."""
    found: dict[int, Any] = {}
    while len(found) < len(workers):
        number, payload = results.get()
        found[number] = pickle.loads(payload)
        if isinstance(found[number], BaseException):
            kill_all(workers)
            raise found[number]
    for worker in workers:
        worker.join()
    return [found[number] for number in range(len(workers))]


def kill_all(workers: list[Any]) -> None:
    """Kill all of them."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def _run(number: int, body: Callable[..., Any], arguments: Any, results: Any) -> None:
    try:
        found = body(number, *arguments)
    except BaseException as error:
        results.put((number, pickle.dumps(error)))
        raise
    results.put((number, pickle.dumps(found)))
