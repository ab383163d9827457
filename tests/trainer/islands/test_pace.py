"""The guarantees of trainer/islands/pace.py, one by one."""

import pytest

from trainer.islands.pace import WINDOW_STEPS, WORTH_IT, Pace, advise
from trainer.islands.share import dealt

EVEN = (1.0, 1.0)


def _advised(pace: Pace, steps_s: list[tuple[float, float]]) -> list:
    return [advice for busy_s in steps_s if (advice := pace.hear(busy_s)) is not None]


@pytest.mark.parametrize("sequences", [2, 3, 8, 64])
@pytest.mark.parametrize("speeds", [(1.0, 1.0), (2.0, 1.0), (1.0, 1.15), (3.0, 1.0), (1.0, 90.0)])
def test_shares_that_are_advised_are_faster_and_leave_none_without(sequences, speeds):
    def takes_s(weights):
        counts = dealt(sequences, weights)
        return tuple(count / speed for count, speed in zip(counts, speeds, strict=True))

    advice = advise(takes_s(EVEN), EVEN, sequences)
    if advice is None:
        # No whole number of sequences is enough faster, or one island would have none.
        best_s = min(max(n / speeds[0], (sequences - n) / speeds[1]) for n in range(1, sequences))
        assert max(takes_s(EVEN)) < 1.25 * best_s or max(speeds) > sequences
    else:
        assert all(dealt(sequences, advice.shares))
        assert advice.faster >= WORTH_IT
        assert max(takes_s(advice.shares)) == pytest.approx(max(takes_s(EVEN)) / advice.faster)
        # With what is advised there is nothing more to advise.
        assert advise(takes_s(advice.shares), advice.shares, sequences) is None


def test_slow_steps_now_and_then_advise_nothing_nor_do_the_first():
    steps_s = [(9.0, 1.0)] * 3 + [(9.0, 1.0) if n % 3 == 0 else (1.0, 1.0) for n in range(90)]
    assert not _advised(Pace(EVEN, 8), steps_s)
    assert not _advised(Pace(EVEN, 8), [(2.0, 1.0)] * WINDOW_STEPS)


def test_what_is_advised_is_advised_once():
    (advice,) = _advised(Pace(EVEN, 9), [(2.5, 4.0)] * 90)
    assert (advice.shares, advice.step_s) == ((2.0, 1.0), (2.5, 4.0))
    assert advice.faster == pytest.approx(4.0 / 3.0)
