"""Figures of one step beside its loss, from sums that ranks and rounds add up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What is known of a step before it is trained, and what its sums will mean."""

    known: Mapping[str, float] = field(default_factory=dict)
    divisors: tuple[tuple[str, float], ...] = ()
    """Name and divisor of each sum that rounds report, in their order; one whose divisor is 0 has
    no figure."""

    def with_sums(self, sums: Sequence[float]) -> dict[str, float]:
        """All figures, once the sums of all ranks are known."""
        named = zip(self.divisors, sums, strict=True)
        return {
            **self.known,
            **{name: total / divisor for (name, divisor), total in named if divisor},
        }
