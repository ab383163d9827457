"""Pure: the learning rate of a step.

Guarantees, each asserted in tests/trainer/test_schedule.py:
- every schedule rises linearly to the peak over the warm-up and never exceeds it;
- cosine and WSD end at `min_lr_ratio` of the peak, constant ends at the peak;
- what `followed_by` adds begins at its peak and ends at its floor, and changes no step before.
"""

import math
from collections.abc import Callable

from trainer.config import SchedConfig

Schedule = Callable[[int], float]
"""Learning rate of step 1 … steps."""


def build_schedule(config: SchedConfig, *, steps: int, peak: float) -> Schedule:
    """The schedule that the recipe names. Reads only the keys that this schedule uses."""
    warmup_steps = config.warmup_steps
    if config.name == "constant":
        after = _constant(peak)
    elif config.name == "wsd":
        after = _wsd(steps, peak, config.min_lr_ratio, config.decay_fraction)
    else:
        after = _cosine(warmup_steps, steps, peak, config.min_lr_ratio)

    def learning_rate(step: int) -> float:
        if step <= warmup_steps:
            return peak * step / warmup_steps
        return after(step)

    return learning_rate


def followed_by(before: Schedule, *, after: int, steps: int, peak: float, floor: float) -> Schedule:
    """`before` up to step `after`, then a linear fall from `peak` to `floor` of it at `steps`."""
    falling_steps = max(1, steps - after - 1)

    def learning_rate(step: int) -> float:
        if step <= after:
            return before(step)
        done = min((step - after - 1) / falling_steps, 1.0)
        return peak * (1.0 - (1.0 - floor) * done)

    return learning_rate


def _cosine(warmup_steps: int, steps: int, peak: float, floor: float) -> Schedule:
    """Fall to `floor` of the peak at the last step (SGDR, arXiv 1608.03983)."""

    def learning_rate(step: int) -> float:
        done = min((step - warmup_steps) / max(1, steps - warmup_steps), 1.0)
        return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done)))

    return learning_rate


def _wsd(steps: int, peak: float, floor: float, decay_fraction: float) -> Schedule:
    """Stay, then fall linearly over the last `decay_fraction` (MiniCPM, arXiv 2404.06395)."""
    decay_steps = max(1, round(steps * decay_fraction))

    def learning_rate(step: int) -> float:
        done = max(0.0, (step - (steps - decay_steps)) / decay_steps)
        return peak * (1.0 - (1.0 - floor) * min(done, 1.0))

    return learning_rate


def _constant(peak: float) -> Schedule:
    """Stay."""

    def learning_rate(step: int) -> float:
        return peak

    return learning_rate
