import pytest

from offload.activations.policy import (
    KEEP,
    RECOMPUTE,
    SELECTIVE,
    ActivationPolicy,
    parse_policy,
)


@pytest.mark.parametrize(
    "policy",
    [
        KEEP,
        RECOMPUTE,
        SELECTIVE,
        ActivationPolicy(kind="swap", alpha=0.25),
        ActivationPolicy(kind="swap", tier="disk"),
    ],
    ids=str,
)
def test_its_text_reads_back(policy):
    assert parse_policy(str(policy)) == policy


def test_the_last_blocks_are_kept():
    swap = ActivationPolicy(kind="swap", alpha=1.0, kept_blocks=2)
    assert [swap.for_block(i, 4).kind for i in range(4)] == ["swap", "swap", "keep", "keep"]
    assert swap.for_block(0, 1) == KEEP
    assert RECOMPUTE.for_block(3, 4) == RECOMPUTE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "swap", "alpha": 1.5}, "alpha must be between 0 and 1, got 1.5"),
        ({"kind": "keep", "alpha": 0.5}, "alpha belongs to swap"),
        ({"kept_blocks": -1}, "must not be negative"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ActivationPolicy(**fields)


@pytest.mark.parametrize("text", ["", "swop", "swap", "swap(x) to host", "swap(0.5) to tape"])
def test_unknown_texts_are_refused(text):
    with pytest.raises(ValueError, match="no activation policy is called"):
        parse_policy(text)
