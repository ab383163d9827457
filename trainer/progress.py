"""How far a run is."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class Progress:
    """Counts of a run. Changed by the loop, and once by a resume."""

    step: int = 0
    """Steps done, skipped ones included."""

    tokens: int = 0
    """Input tokens trained on."""

    updates: int = 0
    """Updates made; steps that were skipped made none."""

    skipped_in_row: int = 0
