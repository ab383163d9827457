"""What a run may use, and how patient it is, in the words of this package."""

from dataclasses import dataclass
from typing import Literal

from cluster.controller import Limits
from cluster.preflight import Needs
from cluster.recovery.budget import Allowance


@dataclass(frozen=True, kw_only=True)
class Means:
    """What generations may use and how long they may take."""

    needs: Needs
    threads: int
    limits: Limits
    starting_s: float
    allowance: Allowance
    replace_within_s: float
    free_within_s: float
    min_workers: int
    cordon_after: int
    cordon_window_s: float
    grow: Literal["auto", "never"]
    grow_after_s: float
    replica_share: float
    rescue_after_s: float
