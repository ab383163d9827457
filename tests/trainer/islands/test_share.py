"""The guarantees of trainer/islands/share.py, one by one."""

import pytest

from trainer.islands.share import BatchShare, Part

BATCH = list(range(8))


def test_every_sequence_is_taken_once():
    for count in (1, 2, 3):
        parts = [Part(index, count).of(BATCH) for index in range(count)]
        assert sorted(sequence for part in parts for sequence in part) == BATCH


def test_earlier_steps_are_shared_out_as_they_were():
    share = BatchShare(Part(0, 1), until=7, before=Part(1, 2))
    assert share.at(7) == Part(1, 2)
    assert share.at(8) == Part(0, 1)
    assert BatchShare(Part(1, 2)).at(1) == Part(1, 2)


def test_the_mean_of_gradients_is_that_of_all_tokens():
    targets = [3, 5, 2, 2, 7, 1, 1, 9]
    gradients = [0.5 * n for n in targets]
    means = []
    for index in range(3):
        part = Part(index, 3)
        means.append(sum(part.of(gradients)) / part.divisor(sum(targets)))
    assert sum(means) / 3 == pytest.approx(sum(gradients) / sum(targets))
