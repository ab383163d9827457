"""How soon and how surely the watchdog speaks. Pure data: neither torch nor ray."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """The defaults find a hung rank within the longer of 3 s and five median steps, and a rank at
    half speed or a link at a tenth within 20 steps."""

    stuck_floor_s: float = 2.2
    """No rank hangs before it made no progress for this long."""

    stuck_steps: float = 4.0
    """The same in median steps; the longer counts."""

    first_steps_s: float = 900.0
    """The same before enough steps were seen, and in phases that were never seen."""

    long_phase_floor_s: float = 60.0
    """The same in phases outside steps, such as saving, once every rank came through one."""

    stopped_s: float = 1.0
    """A process that the system has stopped this long hangs."""

    silence_s: float = 8.0
    """A host that was not heard of for this long is lost. Connections go on up to as long after a
    cut as it lasted, so a link may be cut for a little less than half of this."""

    warm_up_steps: int = 3
    """First steps of a process, which are never judged or learned from."""

    slow_ratio: float = 1.4
    """A rank is slow that computes this many times longer than its peers."""

    link_ratio: float = 3.0
    """A link is slow whose transfers take this many times longer than they did, or others do."""

    window_steps: int = 12
    """Steps over which slowness has to persist."""

    loss_jump: float = 5.0
    """Loss or gradient norm this many times the median of recent steps is a jump."""

    memory_horizon_steps: int = 500
    """Speak when a host's memory will be full within this many steps; 0 never."""

    longest_gap_s: float = 1.0
    """An observation counts for at most this long, so that a pause or a clock that jumps at the
    observer is not held against the ranks."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = vars(self)[item.name]
            if value < 0 or (value == 0 and item.name != "memory_horizon_steps"):
                raise ValueError(f"watchdog.{item.name} must be positive, got {value}")
        for name in ("slow_ratio", "link_ratio", "loss_jump", "stuck_steps"):
            if vars(self)[name] <= 1:
                raise ValueError(
                    f"watchdog.{name} must be above 1, which is a healthy run, got "
                    f"{vars(self)[name]}"
                )
        if self.window_steps < 5:
            raise ValueError(
                f"watchdog.window_steps must be at least 5, got {self.window_steps}; fewer say "
                "nothing about a trend"
            )
