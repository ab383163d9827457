"""What a run by rewards must know after its driver was lost: the ledger of prompts, on disk."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.run_folder import RunFolder, write_atomically


def state_path(folder: RunFolder) -> Path:
    """Where it is."""
    return folder.root / "rl" / "state.json"


def write_state(folder: RunFolder, state: Mapping[str, Any]) -> None:
    """Replace it as a whole. Raises OSError where the disk refuses."""
    write_atomically(state_path(folder), json.dumps(state) + "\n")


def read_state(folder: RunFolder) -> dict[str, Any] | None:
    """None where the run has none yet. Raises DataError where it is damaged."""
    path = state_path(folder)
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(
            f"{path} is no JSON ({error}); delete it to ask all prompts of the steps since the "
            "newest checkpoint again"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is {type(found).__name__}, not an object; delete it")
    return found
