"""What a simulated run is made of: hosts, groups, noise, and the fault that is planted."""

import math
from dataclasses import dataclass

from cluster.watchdog.evidence import ProcessState
from tests.cluster.watchdog.load import Load

HOSTS = {0: "host-a", 1: "host-a", 2: "host-b", 3: "host-b"}
GROUPS = {
    "shard/0": (0, 1),
    "shard/1": (2, 3),
    "replica/0": (0, 2),
    "replica/1": (1, 3),
    "world": (0, 1, 2, 3),
}
RANKS = tuple(HOSTS)
GIB = 1024**3
FLOPS = 1e12
"""Work of a usual step."""

NEVER = math.inf


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, and when."""

    kind: str
    """`freeze`, `cut`, `slow-rank`, `slow-link`, `slow-data`, `silent-host`, `nan`, `leak`."""

    at_s: float
    rank: int = 0
    phase: str = ""
    """Freeze when this phase is next entered; at once where empty."""

    process: ProcessState = "sleeping"
    """State of the frozen process."""

    factor: float = 1.0

    def freezes(self, rank: int, phase: str, until_s: float) -> bool:
        """Whether `rank` does not come out of a phase that would end at `until_s`."""
        here = self.kind == "freeze" and rank == self.rank and phase in (self.phase or phase)
        return here and until_s >= self.at_s


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A run."""

    seed: int
    step_s: float = 1.0
    noise: float = 0.08
    pause_s: float = 0.4
    """Mean length of a pause, which a rank makes now and then."""

    save_every: int = 200
    validate_every: int = 300
    change_at: int = 250
    """Step from which sequences are 2.5 times as long, with their tokens told, until as many steps
    later; and from which on blocks are recomputed, which is not told."""

    warm_up_s: float = 25.0
    load: Load | None = None
    fault: Fault | None = None
