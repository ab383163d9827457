"""A wrong gradient that a drill plants: `planted.json` in the run's folder, read at the start.

{"step": 12, "rank": 1, "factor": "nan"}
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import RecipeError
from trainer.run_folder import write_atomically


@dataclass(frozen=True, kw_only=True)
class Planted:
    """By what the gradient of a rank's own losses is multiplied in one step."""

    step: int
    rank: int
    factor: str
    """A number, or `nan`."""

    def at(self, step: int, rank: int) -> float:
        """1 wherever nothing was planted."""
        return float(self.factor) if (step, rank) == (self.step, self.rank) else 1.0


NOTHING = Planted(step=0, rank=-1, factor="1")


def read_planted(path: Path) -> Planted:
    """What a drill left there. Raises RecipeError where that cannot be read."""
    if not path.is_file():
        return NOTHING
    try:
        planted = Planted(**json.loads(path.read_text()))
        float(planted.factor)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{path} plants no fault: {error}; delete it") from error
    return planted


def write_planted(path: Path, planted: Planted) -> None:
    """Before the run starts."""
    write_atomically(path, json.dumps(asdict(planted)) + "\n")
