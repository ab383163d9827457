"""Which snapshots in memory belong to a run: a line in its folder says so. Neither torch nor ray.

Hosts keep what they are left with; the run's folder is what all of them see. A run whose folder was
deleted, or that went back on purpose, must not be overtaken by what memory still holds.

Guarantees, each asserted in tests/trainer/keeping/test_record.py:
- every start has a higher generation than all before it in that folder;
- another folder, or the same path after it was deleted, is another run;
- what a start forgets stays forgotten.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trainer.run_folder import write_atomically


@dataclass(frozen=True, kw_only=True)
class Record:
    """Of one run."""

    run: str
    """32 hexadecimal digits, drawn once."""

    generation: int
    """Of the newest start."""

    valid_from: int
    """The first start whose snapshots count."""


def read_record(path: Path) -> Record | None:
    """None where the run has had no snapshots, or the file is not one of ours."""
    if not path.is_file():
        return None
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except (ValueError, TypeError):
        return None


def next_start(before: Record | None, *, token: str, forget: bool) -> Record:
    """The record of a new start; `token` names the run if it has no name yet. `forget` drops all
    snapshots of earlier starts."""
    if before is None:
        return Record(run=token, generation=1, valid_from=1)
    generation = before.generation + 1
    started = replace(before, generation=generation)
    return replace(started, valid_from=generation) if forget else started


def write_record(path: Path, record: Record) -> None:
    """Replace the record as a whole."""
    write_atomically(path, json.dumps(asdict(record)) + "\n")
