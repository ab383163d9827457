"""How far a run is."""

from dataclasses import dataclass, field
from typing import Any

from trainer.numeric import history as histories
from trainer.numeric import jumps
from trainer.numeric.history import History
from trainer.numeric.jumps import Rollback


@dataclass(kw_only=True)
class Progress:
    """Counts of a run. Changed by the loop, by a resume and by rollbacks."""

    step: int = 0
    """Steps done, skipped ones included."""

    tokens: int = 0
    """Input tokens trained on."""

    updates: int = 0
    """Updates made; steps that were skipped made none."""

    skipped_in_row: int = 0
    history: History = field(default_factory=History)
    """What recent losses were like."""

    rollbacks: tuple[Rollback, ...] = ()
    """All of the run that are known; some may lie ahead of `step`."""

    def numeric_record(self) -> dict[str, Any]:
        """What decisions about wrong numbers depend on, as JSON."""
        return {
            "skipped_in_row": self.skipped_in_row,
            "history": histories.encode(self.history),
            "rollbacks": jumps.encode(jumps.made_by(self.step, self.rollbacks)),
        }

    def restore_numeric(self, record: dict[str, Any] | None) -> None:
        """Take over what `numeric_record` said, but for the rollbacks, which a run knows better
        than its states. None stands for a state that says nothing."""
        self.skipped_in_row = 0 if record is None else int(record["skipped_in_row"])
        self.history = History() if record is None else histories.decode(record["history"])
