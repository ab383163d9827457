"""Pure: what to guess of the next tokens, and how many of them are worth checking. No torch.

A draft is copied from where the latest tokens occurred before, in the prompt or in any answer to
it (CopySpec, arXiv 2502.08923). It is checked in one forward: every row draws its token with the
random number of that place in the answer, and the draft holds as long as it equals what is drawn.
A draft token d is so accepted with the probability p(d) that the model gives it, and otherwise the
token is drawn from p without d: the rule of speculative sampling (arXiv 2302.01318, theorem 1) for
a guess that is certain. The same random numbers give the same tokens without drafts.

Guarantees, asserted in tests/trainer/rl/engine/test_drafts.py:
- a draft is what followed the last earlier occurrence, and nothing beyond what is known;
- the length has the best goodput of all lengths under the fitted times;
- it is 0 where each checked token costs more than it brings.
"""

from collections.abc import Sequence

_DECAY = 0.98
_PRIOR_ACCEPTANCE = 0.5
_PRIOR_WEIGHT = 8.0


class CopyIndex:
    """Where each run of `match_tokens` occurred last."""

    def __init__(self, match_tokens: int) -> None:
        self._match = match_tokens
        self._followed_by: dict[tuple[int, ...], tuple[list[int], int]] = {}

    def add(self, tokens: list[int], begin: int) -> None:
        """Note the tokens from `begin` on as followers of those before them. The list may grow."""
        for at in range(max(begin, self._match), len(tokens)):
            self._followed_by[tuple(tokens[at - self._match : at])] = (tokens, at)

    def draft(self, tokens: list[int], longest: int) -> list[int]:
        """At most `longest` tokens that followed the latest tokens before."""
        found = self._followed_by.get(tuple(tokens[-self._match :]))
        return found[0][found[1] : found[1] + longest] if found else []


class Acceptance:
    """Moving share of draft tokens that held."""

    def __init__(self) -> None:
        self._held = _PRIOR_ACCEPTANCE * _PRIOR_WEIGHT
        self._tried = _PRIOR_WEIGHT

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self._held / self._tried

    def observe(self, held: int, tried: int) -> None:
        """Take in one check: `held` of `tried` tokens, those after the first failure not tried."""
        weight = _DECAY**tried
        self._held = self._held * weight + held
        self._tried = self._tried * weight + tried


class StepTimes:
    """Seconds of a forward as a fixed part and one per row, fitted with decay."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Take in one forward."""
        self._weight = self._weight * _DECAY + 1.0
        self._rows = self._rows * _DECAY + rows
        self._seconds = self._seconds * _DECAY + seconds
        self._squares = self._squares * _DECAY + rows * rows
        self._products = self._products * _DECAY + rows * seconds

    def fitted(self) -> tuple[float, float]:
        """Fixed seconds and seconds per row, neither negative. Rows that never varied tell the two
        apart no more than a guess of half and half."""
        if not self._weight:
            return 1.0, 0.0
        mean_rows, mean_s = self._rows / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - mean_rows**2
        if variance < 1e-9 * mean_rows**2 + 1e-12:
            return mean_s / 2, mean_s / 2 / max(mean_rows, 1.0)
        slope = (self._products / self._weight - mean_rows * mean_s) / variance
        slope = min(max(slope, 0.0), mean_s / mean_rows)
        return mean_s - slope * mean_rows, slope


def draft_length(
    available: Sequence[int],
    *,
    other_rows: int,
    acceptance: float,
    fixed_s: float,
    row_s: float,
    most_rows: int,
) -> int:
    """The longest draft to check, 0 to `max(available)`, with the best goodput.

    `available` has the draft tokens that each sequence could have checked. Goodput is expected new
    tokens per second of the forward (SmartSpec, arXiv 2406.14066, section 4): a draft of n tokens
    brings 1 + a + ... + a^n. `other_rows` are those of prompts; all rows stay within `most_rows`.
    """
    best, best_goodput = 0, 0.0
    for length in range(max(available, default=0) + 1):
        lengths = [min(length, most) for most in available]
        rows = other_rows + len(available) + sum(lengths)
        seconds = fixed_s + row_s * rows
        if length and rows > most_rows:
            break
        tokens = sum(expected_tokens(acceptance, n) for n in lengths)
        goodput = tokens / seconds if seconds > 0 else float(tokens)
        if goodput > best_goodput * (1 + 1e-9):
            best, best_goodput = length, goodput
    return best


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens that a forward brings to a sequence with a draft of this length."""
    if acceptance >= 1.0:
        return float(length + 1)
    return (1.0 - acceptance ** (length + 1)) / (1.0 - acceptance)
