"""What a run by rewards must know after its driver was lost: the ledger of prompts, on disk.

The first line of `rl/state.jsonl` is the conductor's whole snapshot, each further one what has
changed since the line before: a step writes what is new, not all answers that are kept. Where
the changes outgrow the snapshot, another one takes the place of all.

Guarantees, each asserted in tests/cluster/rl/test_state.py:
- what is read is the conductor's snapshot at the last write that returned, wherever it was ended;
- answers are written about once, however many steps they are kept for.
"""

import json
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.rl.conducting.beginning import merged_state
from trainer.rl.conducting.conductor import Conductor
from trainer.rl.ledger_records import Record
from trainer.run_folder import RunFolder, append_line, read_lines, write_atomically

_OUTGROWN = 4
"""Times the bytes of the snapshot."""

_LEAST_BYTES = 1 << 20
"""Changes that are never too many."""


def state_path(folder: RunFolder) -> Path:
    """Where it is."""
    return folder.root / "rl" / "state.jsonl"


class StateFile:
    """Written by one driver, from its conducting thread."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = state_path(folder)
        self._known: dict[int, Record] | None = None
        self._most_bytes = 0

    def write(self, conductor: Conductor) -> None:
        """Have the conductor's state on disk. Raises OSError where the disk refuses."""
        records = conductor.records
        if self._known is None or self._path.stat().st_size > self._most_bytes:
            write_atomically(self._path, json.dumps(conductor.snapshot()) + "\n")
            self._most_bytes = _OUTGROWN * self._path.stat().st_size + _LEAST_BYTES
        else:
            append_line(self._path, conductor.snapshot(self._known), durable=True)
        self._known = records


def read_state(folder: RunFolder) -> dict[str, Any] | None:
    """None where the run has none yet. Raises DataError where it is damaged."""
    path = state_path(folder)
    if not path.exists():
        return None
    try:
        return merged_state(read_lines(path))
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path} is no state of prompts ({error!r}); delete it to ask all prompts of the steps "
            "since the newest checkpoint again"
        ) from error
