"""Other work on the machines of a simulated run, which takes cores from its ranks."""

import math
import random
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Load:
    """From when on, and how heavy."""

    from_s: float
    least_share: float = 0.5
    most_share: float = 0.95
    """Of the time in which a rank could use a core, it gets none for a share between the two. Ranks
    draw theirs anew after a while, each for itself."""

    redrawn_s: float = 60.0
    pause_s: float = 3.0
    """Mean length of a pause in which a rank runs not at all, as it now and then happens."""

    pause_chance: float = 0.01
    while_hung: float = 0.6
    """The same share of a rank that hangs: of threads beside the one that trains."""


class Starved:
    """Of one rank."""

    def __init__(self, load: Load | None, chance: random.Random) -> None:
        self._load = load
        self._random = chance
        self._share = 0.0
        self._drawn_s = -math.inf
        self._past_s = 0.0
        self._stretches: deque[tuple[float, float, float]] = deque()

    def stretched_s(self, clock_s: float, seconds: float) -> float:
        """How long it takes to use a core for `seconds` from `clock_s` on."""
        load = self._load
        if load is None or clock_s < load.from_s or math.isinf(clock_s + seconds):
            return seconds
        if clock_s - self._drawn_s > load.redrawn_s:
            self._drawn_s = clock_s
            self._share = self._random.uniform(load.least_share, load.most_share)
        taken_s = seconds / (1.0 - self._share)
        if self._random.random() < load.pause_chance:
            taken_s += min(self._random.expovariate(1 / load.pause_s), 4 * load.pause_s)
        self._stretches.append((clock_s, clock_s + taken_s, 1.0 - seconds / taken_s))
        return taken_s

    def total_s(self, now_s: float, frozen_s: float) -> float:
        """As an observer counts it. Times must not go back."""
        while self._stretches and self._stretches[0][1] <= min(now_s, frozen_s):
            begin_s, end_s, share = self._stretches.popleft()
            self._past_s += (end_s - begin_s) * share
        total_s = self._past_s
        if self._stretches:
            begin_s, end_s, share = self._stretches[0]
            total_s += max(0.0, min(now_s, frozen_s, end_s) - begin_s) * share
        if self._load is not None and now_s > frozen_s:
            total_s += (now_s - max(frozen_s, self._load.from_s)) * self._load.while_hung
        return total_s
