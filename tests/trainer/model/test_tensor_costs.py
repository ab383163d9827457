from dataclasses import replace

import pytest

from trainer.model.config import Architecture, MoeConfig
from trainer.model.tensor_costs import check_tensor_degree, tensor_bytes

DENSE = Architecture(vocab_size=320, num_heads=8, num_kv_heads=4, intermediate_size=688)
MIXTURE = replace(DENSE, moe=MoeConfig(expert_intermediate_size=24, shared_intermediate_size=12))


@pytest.mark.parametrize(
    ("architecture", "tp", "words"),
    [
        (DENSE, 8, [r"tp=8", r"num_kv_heads=4", r"\[1, 2, 4\]"]),
        (replace(DENSE, intermediate_size=90), 4, [r"intermediate_size=90", r"among \[1, 2\]"]),
        (replace(DENSE, vocab_size=322), 4, [r"vocab_size=322", r"among \[1, 2\]"]),
        (
            replace(MIXTURE, moe=replace(MIXTURE.moe, expert_intermediate_size=30)),
            4,
            [r"moe\.expert_intermediate_size=30"],
        ),
        (
            replace(MIXTURE, moe=replace(MIXTURE.moe, shared_intermediate_size=6)),
            4,
            [r"moe\.shared_intermediate_size=6"],
        ),
        (
            replace(MIXTURE, moe=replace(MIXTURE.moe, dispatch_size=16)),
            2,
            [r"tp=2", r"moe\.dispatch_size", r"parallel\.ep"],
        ),
        (
            replace(MIXTURE, moe=replace(MIXTURE.moe, residual=True)),
            2,
            [r"moe\.residual", r"tp to 1"],
        ),
    ],
)
def test_a_degree_that_does_not_divide_is_refused_with_those_that_do(architecture, tp, words):
    for word in words:
        with pytest.raises(ValueError, match=word):
            check_tensor_degree(architecture, tp)


def test_only_what_the_model_has_must_divide():
    check_tensor_degree(DENSE, 4)
    check_tensor_degree(replace(DENSE, vocab_size=7), 1)
    # All layers are mixtures, so the dense width is not used.
    check_tensor_degree(replace(MIXTURE, intermediate_size=691), 4)


def test_one_rank_sends_nothing_and_more_ranks_send_more():
    def total(tp):
        sent = tensor_bytes(
            DENSE,
            tokens=100,
            tp=tp,
            activation_bytes=2,
            loss_chunk_tokens=32,
            recompute=False,
        )
        return sum(sent.values())

    assert total(1) == 0
    assert 0 < total(2) < total(4)
