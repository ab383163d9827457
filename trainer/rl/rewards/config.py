"""How answers are judged, as the recipe says it. Pure data: neither torch nor ray."""

import re
from dataclasses import dataclass

MIB = 1024**2
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """A reward function and the processes it runs in."""

    function: str = ""
    """`module:function`, called as function(prompt, completions, reference) for the samples of one
    prompt, returning one number for each; empty: the task's own score."""

    workers: int = 2
    """Processes that call it."""

    time_limit_s: float = 10.0
    """Longest time for the samples of one prompt."""

    start_limit_s: float = 120.0
    """Longest time for a worker to import the function's module."""

    memory_bytes: int = 2048 * MIB
    """Address space of a worker."""

    calls_per_worker: int = 10_000
    """After as many calls a worker is replaced, so that a leak stays small."""

    max_reply_bytes: int = 4 * MIB
    """Longest reply of a worker."""

    allow_unconfined: bool = False
    """Run even where the system cannot confine a process: only for functions that run no generated
    code."""

    def __post_init__(self) -> None:
        if self.function and not FUNCTION.fullmatch(self.function):
            raise ValueError(
                f"rl.reward.function={self.function!r} must be module:function, such as "
                "my_rewards.maths:score"
            )
        for name in (
            "workers",
            "time_limit_s",
            "start_limit_s",
            "calls_per_worker",
            "max_reply_bytes",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"rl.reward.{name}={getattr(self, name)} must be positive")
        if self.memory_bytes < 128 * MIB:
            raise ValueError(
                f"rl.reward.memory_bytes={self.memory_bytes} is too little for an interpreter; "
                f"choose at least {128 * MIB}"
            )
