"""What recent steps were like, and whether a new one is a spike. Pure: neither torch nor ray.

Guarantees, each asserted in tests/trainer/numeric/test_history.py:
- noise, decay, warm-up, and batches of now long, now short sequences raise nothing, whatever the
  seed;
- a spike is found in the step that has it, a gradient that is several times the usual for a while
  in its third step;
- a single batch with such a gradient, and a loss like that of others, is none;
- a level that lasts becomes the usual one where steps are trained on;
- a history takes the same room in JSON at every step, and comes back from it bit by bit.
"""

import math
import struct
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

RECENT_STEPS = 64
FIRST_STEPS = 20
"""Until so many steps were seen nothing is a spike."""

_EXCURSIONS = 2.0
"""How many times farther than the worst recent step a spike lies: a mixture of sequences has modes
that the spread of most steps does not show."""

_TO_SIGMA = 1.4826
"""From the median absolute deviation to the standard deviation of a normal distribution."""

_LOSS_FLOOR = 0.01
"""Least deviation of losses, over their median."""

_ALONE = 0.5
"""So far above their median, over it, a loss is a spike whatever the gradient. Below, the gradient
must be large as well: a rare kind of batch has a higher loss than others and the same gradient."""

_NORM_SUPPORT = 2.5
"""Deviations from which a gradient is large enough for that."""

_NORM_FLOOR = 0.2
"""Least deviation of the logarithm of gradient norms, which vary by factors."""

_NORM_ALONE = math.log(30.0)
"""So far above its median a gradient is a spike whatever the loss. Below, the loss must be high as
well: single batches of rare text have ten times the gradient in a healthy run, clipping bounds what
they do, and what they harm shows in the next loss."""

_LOSS_SUPPORT = 4.0
"""Deviations from which a loss is high enough for that, where no recent one was higher."""

_LASTING_STEPS = 3
"""Or the gradient is large in so many steps in a row."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Of the steps that were trained on, oldest first."""

    losses: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()
    spikes: int = 0
    """Spikes in a row that were trained on so far, and are not in the history yet."""

    def adding(self, loss: float, grad_norm: float) -> "History":
        """With one more healthy step; the oldest goes where there are enough."""
        return History(
            losses=(*self.losses, loss)[-RECENT_STEPS:],
            grad_norms=(*self.grad_norms, grad_norm)[-RECENT_STEPS:],
        )

    def after_spike(self) -> "History":
        """With one more spike that was trained on."""
        return replace(self, spikes=self.spikes + 1)


def spike_cause(
    history: History, loss: float, grad_norm: float, *, deviations: float
) -> str | None:
    """Why a step with these finite numbers is a spike, in a sentence; None where it is none."""
    if len(history.losses) < FIRST_STEPS:
        return None
    norms = [math.log(norm) for norm in history.grad_norms if norm > 0.0]
    norm = math.log(grad_norm) if grad_norm > 0.0 and len(norms) >= FIRST_STEPS else None
    if _loss_spikes(history.losses, loss, norms, norm, deviations=deviations):
        return (
            f"loss {loss:.6g} against a median of {median(history.losses):.6g} over the last "
            f"{len(history.losses)} steps, of which the worst had {max(history.losses):.6g}"
        )
    if norm is not None and _norm_spikes(history.losses, loss, norms, norm, deviations=deviations):
        return (
            f"gradient norm {grad_norm:.6g} against a median of "
            f"{median(history.grad_norms):.6g} over the last {len(norms)} steps, of which the "
            f"worst had {max(history.grad_norms):.6g}"
        )
    return None


def _loss_spikes(
    losses: Sequence[float],
    loss: float,
    norms: Sequence[float],
    norm: float | None,
    *,
    deviations: float,
) -> bool:
    usual = median(losses)
    supported = norm is not None and _is_high(norm, norms, _NORM_SUPPORT, floor=_NORM_FLOOR)
    alone = loss - usual > _ALONE * abs(usual)
    floor = _LOSS_FLOOR * abs(usual)
    return (supported or alone) and _outside(loss, losses, floor=floor, deviations=deviations)


def _norm_spikes(
    losses: Sequence[float], loss: float, norms: Sequence[float], norm: float, *, deviations: float
) -> bool:
    """`norms` and `norm` are logarithms."""
    floor = _LOSS_FLOOR * abs(median(losses))
    alone = norm - median(norms) > _NORM_ALONE
    supported = loss > max(losses) and _is_high(loss, losses, _LOSS_SUPPORT, floor=floor)
    if alone or supported:
        return _outside(norm, norms, floor=_NORM_FLOOR, deviations=deviations)
    before, last = norms[: 1 - _LASTING_STEPS], norms[1 - _LASTING_STEPS :]
    return _outside(min(norm, *last), before, floor=_NORM_FLOOR, deviations=deviations)


def _is_high(value: float, recent: Sequence[float], deviations: float, *, floor: float) -> bool:
    return value - median(recent) > deviations * _sigma(recent, floor)


def _outside(value: float, recent: Sequence[float], *, floor: float, deviations: float) -> bool:
    middle = median(recent)
    far = _is_high(value, recent, deviations, floor=floor)
    return far and value - middle > _EXCURSIONS * (max(recent) - middle)


def _sigma(recent: Sequence[float], floor: float) -> float:
    middle = median(recent)
    return max(_TO_SIGMA * median(abs(x - middle) for x in recent), floor)


def encode(history: History) -> dict[str, str | int]:
    """As JSON."""
    return {
        "losses": _packed(history.losses),
        "grad_norms": _packed(history.grad_norms),
        "spikes": history.spikes,
    }


def decode(record: dict[str, str | int]) -> History:
    """Raises ValueError where it is not one of ours."""
    try:
        return History(
            losses=_unpacked(str(record["losses"])),
            grad_norms=_unpacked(str(record["grad_norms"])),
            spikes=int(record["spikes"]),
        )
    except (KeyError, struct.error) as error:
        raise ValueError(f"no history of losses: {record!r}") from error


def _packed(values: Sequence[float]) -> str:
    # Padded, since a share in memory has room for one length.
    padded = [*values, *[math.nan] * (RECENT_STEPS - len(values))]
    return b64encode(struct.pack(f"<{RECENT_STEPS}d", *padded)).decode()


def _unpacked(text: str) -> tuple[float, ...]:
    values = struct.unpack(f"<{RECENT_STEPS}d", b64decode(text, validate=True))
    return tuple(value for value in values if not math.isnan(value))
