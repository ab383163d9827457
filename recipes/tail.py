"""The end of a file of JSON lines that a run still writes."""

import json
from pathlib import Path
from typing import Any

_TAIL_BYTES = 64 * 1024


def tail(path: Path) -> list[dict[str, Any]]:
    """The last whole lines, as far as they are in the last 64 KiB; none where there is no file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in (lines if size <= _TAIL_BYTES else lines[1:])]


def last_of_kind(path: Path, kind: str) -> dict[str, Any] | None:
    """The last event of a kind, read backwards until it is found; None where there is none."""
    if not path.exists():
        return None
    mark = json.dumps({"kind": kind})[1:-1].encode()
    with path.open("rb") as file:
        end, later = file.seek(0, 2), b""
        while end > 0:
            begin = max(0, end - _TAIL_BYTES)
            file.seek(begin)
            text = file.read(end - begin) + later
            # Its first line may begin further up.
            first = 0 if begin == 0 else text.find(b"\n") + 1 or len(text)
            for line in reversed(text[first:].split(b"\n")[:-1]):
                if mark in line and (event := json.loads(line))["kind"] == kind:
                    return dict(event)
            end, later = begin, text[:first]
    return None
