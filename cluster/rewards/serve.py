"""A reward worker: `python -m cluster.rewards.serve`, one line of JSON in, one out.

The first line says which function and within which limits. The process is confined before that
function's module is imported.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from cluster.rewards.protocol import decode_object, encode, shortened
from cluster.rewards.sandbox import Limits, confine
from trainer.rl.rewards.outcome import FaultKind

RAISED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    ReferenceError,
    RuntimeError,
    StopIteration,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What functions commonly raise on texts they did not expect. Any other error ends the worker; it
is reported just the same, and the worker replaced."""

Function = Callable[[str, list[str], dict[str, Any]], Any]


def main() -> None:
    """Serve until there are no more requests."""
    requests, replies = _private_streams()
    settings = decode_object(requests.readline()) or {}
    limits = Limits(memory_bytes=settings["memory_bytes"])
    confinement = confine(limits, parent_pid=settings["parent_pid"])
    function, error = _load(settings["function"])
    _send(
        replies,
        {"ready": function is not None, "error": error, "filtered": confinement.filtered},
    )
    if function is None:
        return
    for line in requests:
        request = decode_object(line) or {}
        _send(replies, {"number": request["number"], **call(function, request)})


def call(function: Function, request: dict[str, Any]) -> dict[str, Any]:
    """The rewards, or what was raised instead."""
    try:
        returned = function(request["prompt"], request["completions"], request["reference"])
        return {"rewards": [_plain(reward) for reward in returned]}
    except MemoryError:
        return {"kind": FaultKind.MEMORY, "reason": "it ran out of memory"}
    except RAISED as error:
        return {"kind": FaultKind.RAISED, "reason": shortened(f"{type(error).__name__}: {error}")}


def _plain(reward: Any) -> Any:
    """A number of any library as one of Python; None is kept, to be told apart from a number."""
    return reward if reward is None or isinstance(reward, str) else float(reward)


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Requests and replies, out of the way of what the function reads and prints."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    # Prints then come before a traceback, whose last line is the reason.
    sys.stdout = sys.stderr
    return requests, replies


def _load(name: str) -> tuple[Function | None, str]:
    module_name, _, function_name = name.partition(":")
    try:
        found = vars(importlib.import_module(module_name)).get(function_name)
    except (*RAISED, MemoryError) as error:
        return None, f"{type(error).__name__}: {error}"
    if not callable(found):
        return None, f"{module_name} has no function {function_name}"
    return found, ""


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(encode(message))
    replies.flush()


if __name__ == "__main__":
    main()
