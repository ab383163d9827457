"""How long a disk lasts under what is written to it. Pure."""

from dataclasses import dataclass

SECONDS_PER_YEAR = 365.0 * 24.0 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Wear:
    """Writes of a run so far."""

    written_bytes: int
    run_s: float

    def years_left(self, endurance_bytes: float) -> float:
        """Years until `endurance_bytes`, the maker's "terabytes written", are used up."""
        if self.written_bytes == 0:
            return float("inf")
        rate_bytes_per_s = self.written_bytes / self.run_s
        return (endurance_bytes - self.written_bytes) / rate_bytes_per_s / SECONDS_PER_YEAR
