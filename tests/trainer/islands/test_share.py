"""The guarantees of trainer/islands/share.py, one by one."""

import pytest

from trainer.islands.share import BatchShare, Part, deal, dealt, enough_for_all

BATCH = list(range(8))
WEIGHTS = [(1.0,), (1.0, 1.0), (1.0, 1.0, 1.0), (2.0, 1.0), (1.0, 3.5), (1.0, 2.0, 4.0, 1.0)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_sequence_is_taken_once(weights):
    parts = [Part(index, weights).of(BATCH) for index in range(len(weights))]
    assert sorted(sequence for part in parts for sequence in part) == BATCH


@pytest.mark.parametrize("weights", WEIGHTS)
def test_islands_take_as_many_as_their_weights_say_all_along_the_batch(weights):
    for sequences in range(1, 100):
        counts = dealt(sequences, weights)
        for count, weight in zip(counts, weights, strict=True):
            wanted = sequences * weight / sum(weights)
            # Two islands are never further off than a half; more of them may be, by little.
            assert abs(count - wanted) <= (0.5 if len(weights) <= 2 else 1.0)
        assert deal(sequences, weights) == deal(100, weights)[:sequences]


def test_islands_of_equal_weights_take_every_nth():
    for count in (1, 2, 3):
        for index in range(count):
            part = Part(index, (1.0,) * count)
            assert part.of(BATCH) == BATCH[index::count]
            assert part.divisor(10) == 10 / count


@pytest.mark.parametrize("weights", WEIGHTS)
def test_so_many_sequences_are_enough_for_all(weights):
    enough = enough_for_all(weights)
    assert all(all(dealt(more, weights)) for more in range(enough, enough + 9))
    # The least may come first where it is as far behind as others.
    assert not all(dealt(enough - len(weights), weights))


def test_earlier_steps_are_shared_out_as_they_were():
    now, then = Part(0, (1.0,)), Part(1, (2.0, 1.0))
    share = BatchShare(now, until=7, before=then)
    assert share.at(7) == then
    assert share.at(8) == now
    assert BatchShare(then).at(1) == then


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_mean_of_gradients_is_that_of_all_tokens(weights):
    targets = [3, 5, 2, 2, 7, 1, 1, 9]
    gradients = [0.5 * n for n in targets]
    total = 0.0
    for index, weight in enumerate(weights):
        part = Part(index, weights)
        total += weight * sum(part.of(gradients)) / part.divisor(sum(targets))
    assert total / sum(weights) == pytest.approx(sum(gradients) / sum(targets))
