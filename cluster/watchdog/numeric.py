"""Losses that are not finite, or that jump.

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_numeric.py:
- a loss or gradient norm that is not finite is said at once, with the ranks it came from;
- a jump is a loss over `loss_jump` times the median of recent steps, far outside their spread, or
  gradient norms that stay so for several steps;
- noise, decay, the first steps and losses about zero raise nothing; one jump is said once.
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from cluster.watchdog.evidence import ClusterEvidence, LossPoint
from cluster.watchdog.finding import Finding
from cluster.watchdog.robust import spread

RECENT_STEPS = 50
FIRST_STEPS = 20
NORMS_IN_ROW = 3
"""Single gradients are large now and then in a healthy run."""

_SIGMAS = 8.0


class Losses:
    """The losses of recent steps. Feed it every observation."""

    def __init__(self, jump: float) -> None:
        self._jump = jump
        self._losses: deque[float] = deque(maxlen=RECENT_STEPS)
        self._norms: deque[float] = deque(maxlen=RECENT_STEPS)
        self._high_norms = 0

    def add(self, evidence: ClusterEvidence) -> list[Finding]:
        """What the new steps say."""
        return [found for point in evidence.losses for found in self._judge(point, evidence)]

    def _judge(self, point: LossPoint, evidence: ClusterEvidence) -> list[Finding]:
        if not (math.isfinite(point.loss) and math.isfinite(point.grad_norm)) or point.bad_ranks:
            return [_not_finite(point, evidence)]
        found = []
        loss_jumps = self._over(point.loss, self._losses)
        norm_jumps = self._over(point.grad_norm, self._norms)
        self._high_norms = self._high_norms + 1 if norm_jumps else 0
        if loss_jumps:
            found.append(_jump("loss", point.step, point.loss, self._losses))
        elif self._high_norms == NORMS_IN_ROW:
            found.append(_jump("gradient norm", point.step, point.grad_norm, self._norms))
        # A level that lasts becomes the usual one by and by.
        self._losses.append(point.loss)
        self._norms.append(point.grad_norm)
        return found

    def _over(self, value: float, recent: Sequence[float]) -> bool:
        if len(recent) < FIRST_STEPS:
            return False
        middle = median(recent)
        if middle <= 0:
            # Objectives of rewards lie about zero, and nothing is some times that.
            return False
        return value > self._jump * middle and value > middle + _SIGMAS * spread(recent)


def _not_finite(point: LossPoint, evidence: ClusterEvidence) -> Finding:
    rank = min(point.bad_ranks, default=None)
    if rank is None:
        sentence = f"loss {point.loss} and gradient norm {point.grad_norm} of step {point.step}"
    else:
        sentence = f"the loss of step {point.step} is not finite on ranks {list(point.bad_ranks)}"
    seen = evidence.ranks.get(rank) if rank is not None else None
    return Finding(
        kind="numeric",
        cause="not-finite",
        rank=rank,
        host=seen.host if seen else None,
        step=point.step,
        detected_after_s=0.0,
        confidence=0.95 if len(point.bad_ranks) == 1 else 0.5,
        evidence=(sentence,),
    )


def _jump(name: str, step: int, value: float, recent: Sequence[float]) -> Finding:
    return Finding(
        kind="numeric",
        cause="loss-jump",
        step=step,
        detected_after_s=0.0,
        confidence=0.6,
        evidence=(
            f"{name} {value:.4g} of step {step} is {value / median(recent):.1f} times the median "
            f"of the {len(recent)} steps before",
        ),
        may_heal=True,
    )
