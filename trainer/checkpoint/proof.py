"""Whether a resumed run computes what the saved one did. Pure; neither torch nor ray.

A checkpoint stores the loss of a fixed probe batch. After loading, the loss is computed again:
- with the same layout on the same kind of device, every bit must be the same;
- otherwise sums are formed in another order, and the two may differ by a relative 1e-5 in fp32 and
  2e-2 in bf16, whose unit roundoff is 2^-8;
- a loss that is not finite proves nothing, and never passes.
Each is asserted in tests/trainer/checkpoint/test_proof.py.
"""

import math
from typing import Literal

from trainer.errors import NumericError

RELATIVE_BOUND = {"fp32": 1e-5, "bf16": 2e-2}

Precision = Literal["fp32", "bf16"]


def same_loss(stored: float, recomputed: float, *, same_layout: bool, precision: Precision) -> bool:
    """Whether the two losses agree within the bound. `same_layout` includes the device kind."""
    if not (math.isfinite(stored) and math.isfinite(recomputed)):
        return False
    if same_layout:
        return stored == recomputed
    return math.isclose(stored, recomputed, rel_tol=RELATIVE_BOUND[precision])


def check_same_loss(
    stored: float, recomputed: float, *, same_layout: bool, precision: Precision
) -> None:
    """Raise NumericError, with both values, where `same_loss` is false."""
    if same_loss(stored, recomputed, same_layout=same_layout, precision=precision):
        return
    bound = "every bit" if same_layout else f"a relative {RELATIVE_BOUND[precision]:g}"
    raise NumericError(
        f"the resumed run is not the saved one: the probe batch had loss {stored!r} when the "
        f"checkpoint was written and has {recomputed!r} now, which must agree to {bound}. "
        "Weights, data or arithmetic differ; check that model, precision and tokenizer are those "
        "of the saved run, or resume from an earlier checkpoint"
    )
