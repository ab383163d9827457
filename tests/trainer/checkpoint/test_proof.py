"""The bounds of a proven resume."""

import math

import pytest

from trainer.checkpoint.proof import Precision, check_same_loss, same_loss
from trainer.errors import ExitCode, NumericError


def test_same_layout_must_agree_in_every_bit() -> None:
    loss = 2.3456789
    assert same_loss(loss, loss, same_layout=True, precision="fp32")
    assert not same_loss(loss, math.nextafter(loss, 3), same_layout=True, precision="bf16")


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_another_layout_may_differ_within_the_bound(precision: Precision, bound: float) -> None:
    assert same_loss(4.0, 4.0 * (1 + 0.9 * bound), same_layout=False, precision=precision)
    assert not same_loss(4.0, 4.0 * (1 + 1.1 * bound), same_layout=False, precision=precision)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("same_layout", [True, False])
def test_a_loss_that_is_not_finite_never_passes(value: float, same_layout: bool) -> None:
    assert not same_loss(value, value, same_layout=same_layout, precision="fp32")


def test_the_error_shows_both_values_and_the_bound() -> None:
    with pytest.raises(NumericError, match=r"3\.25.*4\.5.*relative 1e-05") as caught:
        check_same_loss(3.25, 4.5, same_layout=False, precision="fp32")
    assert caught.value.exit_code == ExitCode.NUMERIC
    check_same_loss(3.25, 3.25, same_layout=True, precision="fp32")
