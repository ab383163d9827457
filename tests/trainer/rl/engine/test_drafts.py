import pytest

from trainer.rl.engine.drafts import (
    Acceptance,
    CopyIndex,
    StepTimes,
    draft_length,
    expected_tokens,
)


def test_a_draft_is_what_followed_the_last_earlier_occurrence():
    index = CopyIndex(2)
    tokens = [1, 2, 3, 4, 1, 2, 5, 6, 1, 2]
    index.add(tokens, 0)
    assert index.draft(tokens, 3) == [5, 6, 1]
    assert index.draft(tokens, 0) == []
    assert index.draft([9, 9], 3) == []


def test_a_draft_may_come_from_another_answer_and_ends_where_that_ends():
    index = CopyIndex(2)
    other, mine = [1, 2, 7, 8], [1, 2]
    index.add(other, 0)
    index.add(mine, 0)
    assert index.draft(mine, 10) == [7, 8]
    other.append(9)
    assert index.draft(mine, 10) == [7, 8, 9]


def test_tokens_added_later_are_found():
    index = CopyIndex(1)
    tokens = [4]
    index.add(tokens, 0)
    for token in (5, 4):
        tokens.append(token)
        index.add(tokens, len(tokens) - 1)
    assert index.draft(tokens, 5) == [5, 4]


def chosen(available, **changes):
    settings = {"other_rows": 0, "acceptance": 0.7, "fixed_s": 1.0, "row_s": 0.1, "most_rows": 99}
    return draft_length(available, **settings | changes)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("row_s", [0.0, 0.02, 0.2, 2.0])
@pytest.mark.parametrize("available", [[5], [3, 0, 8], [1] * 20])
def test_no_other_length_has_a_better_goodput(acceptance, row_s, available):
    def goodput(length):
        lengths = [min(length, most) for most in available]
        rows = 4 + len(available) + sum(lengths)
        # Written as the sum it is, not in closed form.
        tokens = sum(sum(acceptance**i for i in range(n + 1)) for n in lengths)
        return tokens / (1.0 + row_s * rows)

    length = chosen(available, acceptance=acceptance, row_s=row_s, other_rows=4)
    assert 0 <= length <= max(available)
    assert goodput(length) == pytest.approx(max(map(goodput, range(max(available) + 1))))


def test_nothing_is_drafted_where_a_token_costs_more_than_it_brings():
    assert chosen([4, 4], row_s=10.0) == 0
    assert chosen([4, 4], acceptance=0.0) == 0
    assert chosen([]) == 0


def test_a_lone_answer_drafts_more_than_a_full_batch():
    assert chosen([8]) > chosen([8] * 40)


def test_drafts_stay_within_the_budget_of_the_forward():
    assert chosen([6, 6], row_s=0.0, acceptance=1.0, most_rows=9) == 3
    assert chosen([6, 6], row_s=0.0, acceptance=1.0, most_rows=2) == 0


def test_expected_tokens_of_a_certain_draft_are_all_of_them():
    assert expected_tokens(1.0, 4) == 5.0
    assert expected_tokens(0.5, 2) == pytest.approx(1.75)


def test_times_are_fitted_and_forget():
    times = StepTimes()
    for rows in (4, 8, 6, 12):
        times.observe(rows, 0.5 + 0.1 * rows)
    assert times.fitted() == pytest.approx((0.5, 0.1))
    for i in range(600):
        times.observe(4 + i % 3, 2.0 + 0.3 * (4 + i % 3))
    assert times.fitted() == pytest.approx((2.0, 0.3), rel=1e-3)


def test_times_without_variation_are_split_and_never_negative():
    assert sum(StepTimes().fitted()) > 0
    times = StepTimes()
    for _ in range(5):
        times.observe(4, 2.0)
    assert times.fitted() == pytest.approx((1.0, 0.25))
    for rows, seconds in ((2, 5.0), (9, 0.1)):
        times.observe(rows, seconds)
    assert min(times.fitted()) >= 0.0


def test_acceptance_moves_to_what_is_observed():
    acceptance = Acceptance()
    assert acceptance.share == 0.5
    for _ in range(300):
        acceptance.observe(3, 3)
    assert acceptance.share > 0.95
    for _ in range(300):
        acceptance.observe(0, 1)
    assert acceptance.share < 0.05
