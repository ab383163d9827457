"""Runs one generated program: `python -m cluster.rewards.run_program`.

Its stdin holds a line of settings, as many bytes of source as they say, and then what the program
reads. The process is confined before the source is compiled.
"""

import importlib.abc
import importlib.util
import os
import sys

from cluster.rewards.protocol import decode_object
from cluster.rewards.sandbox import Limits, confine


class _Source(importlib.abc.InspectLoader):
    """Loads a module from a text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def get_source(self, fullname: str) -> str:
        return self._text


def main() -> None:
    """Run the program as `__main__`."""
    settings = decode_object(_read_line()) or {}
    source = _read_bytes(settings["source_bytes"]).decode()
    limits = Limits(memory_bytes=settings["memory_bytes"], cpu_s=settings["cpu_s"])
    confinement = confine(limits, parent_pid=settings["parent_pid"])
    if not confinement.filtered:
        sys.exit("SystemError: no confinement, so the program was not run")
    loader = _Source(source)
    spec = importlib.util.spec_from_loader("__main__", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["__main__"] = module
    loader.exec_module(module)


def _read_line() -> bytes:
    """A line, and not a byte of what follows it."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return bytes(line)


def _read_bytes(count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = os.read(0, count - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


if __name__ == "__main__":
    main()
