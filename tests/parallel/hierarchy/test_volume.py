"""The formulas in the cases that can be worked out by hand."""

import pytest

from parallel.hierarchy.volume import (
    BLOCK,
    GroupShape,
    ParameterShape,
    held_bytes,
    step_bytes,
    working_bytes,
)
from parallel.hierarchy.widths import Widths

EVEN = GroupShape(
    parameters=(
        ParameterShape(shape=(64, 32)),
        ParameterShape(shape=(5, 32, 16), dim=1),
        ParameterShape(shape=(128,)),
    )
)
ELEMENTS = 64 * 32 + 5 * 32 * 16 + 128


@pytest.mark.parametrize(("w", "g", "o"), [(1, 1, 1), (1, 2, 8), (2, 4, 16), (4, 4, 4)])
def test_even_sizes_cost_what_the_papers_say(w, g, o):
    widths = Widths(weights=w, gradients=g, optimizer=o)
    held = held_bytes([EVEN, EVEN], widths, (0, 0, 0), param_bytes=2)
    assert held == {
        "weights": 2 * 2 * ELEMENTS // w,
        "gradients": 4 * 2 * ELEMENTS // g,
        "masters": 4 * 2 * ELEMENTS // o,
        "moments": 8 * 2 * ELEMENTS // o,
    }


def test_frozen_parameters_cost_their_weights_alone():
    frozen = GroupShape(parameters=(ParameterShape(shape=(6, 4), trainable=False),))
    widths = Widths(weights=2, gradients=2, optimizer=4)
    held = held_bytes([frozen], widths, (0, 0, 0), param_bytes=2)
    assert held == {"weights": 24, "gradients": 0, "masters": 0, "moments": 0}
    sent = step_bytes([frozen], widths, data_ranks=4, rounds=1, param_bytes=2, quantized=False)
    assert sent == {"weights/all_gather": 2 * 24}


def test_each_stage_sends_what_the_one_before_has_left():
    widths = Widths(weights=2, gradients=4, optimizer=8)
    options = {"rounds": 3, "param_bytes": 2, "quantized": False}
    sent = step_bytes([EVEN], widths, data_ranks=16, **options)
    assert sent == {
        "weights/all_gather": 3 * 2 * ELEMENTS * 2 // 2,
        "weights/reduce_scatter": 3 * ELEMENTS * 4 // 2,
        "gradients/reduce_scatter": 3 * (ELEMENTS // 2) * 4 // 2,
        "optimizer/reduce_scatter": (ELEMENTS // 4) * 4 // 2,
        "replica/all_reduce": 2 * (ELEMENTS // 8) * 4 // 2,
        "optimizer/all_gather": (ELEMENTS // 4) * 2 // 2,
        "gradients/all_gather": (ELEMENTS // 2) * 2 // 2,
    }
    wider = Widths(weights=2, gradients=4, optimizer=16)
    inner = ("weights/all_gather", "weights/reduce_scatter", "gradients/reduce_scatter")
    outer = step_bytes([EVEN], wider, data_ranks=16, **options)
    assert [outer[name] for name in inner] == [sent[name] for name in inner]


def test_int8_gathers_send_a_byte_per_weight_and_a_scale_per_block():
    group = GroupShape(parameters=(ParameterShape(shape=(64, BLOCK)),))
    widths = Widths(weights=1, gradients=1, optimizer=4)
    sent = step_bytes([group], widths, data_ranks=4, rounds=1, param_bytes=4, quantized=True)
    assert sent["optimizer/all_gather"] == 3 * 16 * (BLOCK + 4)


def test_working_memory_is_that_of_blocks_and_not_of_the_model():
    widths = Widths(weights=2, gradients=4, optimizer=4)
    options = {"param_bytes": 2, "quantized": False}
    one = working_bytes([EVEN], widths, transport_copies=False, **options)
    assert working_bytes([EVEN] * 9, widths, transport_copies=False, **options) == one
    copied = working_bytes([EVEN], widths, transport_copies=True, **options)
    assert copied - one == 4 * ELEMENTS // 2
