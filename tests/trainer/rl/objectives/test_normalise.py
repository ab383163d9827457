"""The only denominators: hand-computed sums, and what ranks, rounds and cuts may not change."""

import pytest
import torch

from trainer.rl.objectives.normalise import normalised_pair_sum, normalised_sum
from trainer.rl.objectives.stream import GlobalCounts, PolicyStream

MODES = ["token", "sequence", "constant"]
COUNTS = GlobalCounts(tokens=4, sequences=2, max_response_tokens=10)


def stream(mask, sequence, tokens):
    zeros_T = torch.zeros(len(mask))
    return PolicyStream(
        mask_T=torch.tensor(mask),
        sequence_T=torch.tensor(sequence),
        tokens_S=torch.tensor(tokens),
        advantage_T=zeros_T,
        behave_T=zeros_T,
    )


def example():
    """A sequence of 3 trained tokens and one of 1, a prompt token before each, and padding."""
    mask = [False, True, True, True, False, True, False]
    return stream(mask, [0, 0, 0, 0, 1, 1, 0], [3, 1])


LOSS_T = torch.tensor([9.0, 1.0, 2.0, 3.0, 9.0, 6.0, 9.0])


@pytest.mark.parametrize(
    ("mode", "expected"), [("token", 12 / 4), ("sequence", (2 + 6) / 2), ("constant", 12 / 20)]
)
def test_hand_computed_sums(mode, expected):
    assert float(normalised_sum(LOSS_T, example(), COUNTS, mode)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("mode", "weights"),
    [("token", [1 / 4] * 4), ("sequence", [1 / 6] * 3 + [1 / 2]), ("constant", [1 / 20] * 4)],
)
def test_weights_of_tokens_are_the_gradient(mode, weights):
    loss_T = LOSS_T.clone().requires_grad_()
    normalised_sum(loss_T, example(), COUNTS, mode).backward()
    assert loss_T.grad[example().mask_T].tolist() == pytest.approx(weights)
    assert loss_T.grad[~example().mask_T].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_cutting_the_stream_over_ranks_or_rounds_changes_nothing(mode, cut):
    whole = example()
    parts = []
    for here in (slice(None, cut), slice(cut, None)):
        part = stream(
            whole.mask_T[here].tolist(), whole.sequence_T[here].tolist(), whole.tokens_S.tolist()
        )
        parts.append(normalised_sum(LOSS_T[here], part, COUNTS, mode))
    assert float(sum(parts)) == pytest.approx(
        float(normalised_sum(LOSS_T, whole, COUNTS, mode)), rel=1e-6
    )


@pytest.mark.parametrize("mode", MODES)
def test_values_outside_the_mask_are_never_read(mode):
    loss_T = LOSS_T.clone()
    loss_T[~example().mask_T] = float("nan")
    loss_T.requires_grad_()
    loss = normalised_sum(loss_T, example(), COUNTS, mode)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(loss_T.grad).all()


def test_pairs_are_divided_by_those_of_the_step():
    counts = GlobalCounts(tokens=1, sequences=1, pairs=4)
    assert float(normalised_pair_sum(torch.tensor([1.0, 3.0]), counts)) == 1.0
    with pytest.raises(ValueError, match=r"counts\.pairs=0 is less than the 2 pairs"):
        normalised_pair_sum(torch.zeros(2), GlobalCounts(tokens=1, sequences=1))


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"sequences": 0}, {"max_response_tokens": 0}])
def test_a_step_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one token"):
        GlobalCounts(**({"tokens": 1, "sequences": 1} | wrong))
