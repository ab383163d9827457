"""Calls to actors: wait for all of them, and tell answers from the ends of processes."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray

from cluster.waiting import Waiting

Key = TypeVar("Key")


def unanswered(
    refs: "Mapping[Key, ray.ObjectRef[Any]]", waiting: Waiting, describe: Callable[[Key], str]
) -> list[Key]:
    """Wait until every call has come back, one way or the other, or the deadline has passed; those
    that have not come back. `describe` names a process.

    Raises StopRequested after a signal.
    """
    pending = list(refs.values())
    while pending:
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=0.2)
        missing = ", ".join(describe(key) for key, ref in refs.items() if ref in pending)
        if pending and waiting.overrun(f"waiting for {missing}"):
            break
    return [key for key, ref in refs.items() if ref in pending]


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def plain_lines(error: BaseException) -> list[str]:
    """What an error says, line by line, without colours."""
    return _COLOURS.sub("", str(error)).splitlines()


def end_of_process(message: str) -> str:
    """What Ray knows about a process that ended, without its identifiers and general advice."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = " ".join([line for line in lines if "exit detail" in line.lower()] or lines[-1:])
    told = told.partition("Some common causes include")[0]
    told = told.rpartition("Worker exit detail:")[2].strip()
    if "End of file" in told:
        return (
            "it was killed or it crashed, its connection broke off (see its last lines; where the "
            "kernel ended it for want of memory, dmesg says so)"
        )
    return told
