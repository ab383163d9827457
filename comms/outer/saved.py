"""Outer state as named tensors, and back.

Guarantees, each asserted in tests/comms/outer/test_saved.py:
- what was written is read back bitwise, an exchange under way included;
- missing, unknown and misshapen tensors are named, and nothing is changed.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from comms.outer.flight import Landing
from comms.outer.fragment import Fragment, OuterState
from comms.outer.shards import flat_of

COUNTS = "outer/counts"
"""Steps, exchanges begun and exchanges committed, as int64."""

FLIGHT = "outer/flight"
"""Fragment of the exchange under way, this island's place, then per island whether it is finite
and whether it leaves, as int64."""

_GLOBAL, _MOMENTUM = "global", "momentum"
_NEXT_GLOBAL, _NEXT_MOMENTUM = "next_global", "next_momentum"

Counts = tuple[int, int, int]


def write_state(
    fragments: Sequence[Fragment], counts: Counts, flight: tuple[int, Landing] | None
) -> dict[str, Tensor]:
    """All of it as `NAME/global`, `NAME/momentum` and so on, in host memory, not copied."""
    found = {COUNTS: torch.tensor(counts)}
    for fragment in fragments:
        found |= _named(fragment, fragment.state, _GLOBAL, _MOMENTUM)
    if flight is not None:
        number, landing = flight
        islands = range(len(landing.finite))
        marks = [number, landing.place, *landing.finite, *(n in landing.leaving for n in islands)]
        found[FLIGHT] = torch.tensor([int(mark) for mark in marks])
        state = landing.state.to(torch.device("cpu"))
        found |= _named(fragments[number], state, _NEXT_GLOBAL, _NEXT_MOMENTUM)
    return found


def read_state(
    fragments: Sequence[Fragment], state: Mapping[str, Tensor]
) -> tuple[Counts, tuple[int, Landing] | None]:
    """Give the fragments their outer state; returns the counts and what was under way.

    Raises ValueError where names or shapes do not fit.
    """
    flying = [int(state[FLIGHT][0])] if FLIGHT in state else []
    _check(fragments, state, flying)
    for fragment in fragments:
        fragment.restore(_outer(fragment, state, _GLOBAL, _MOMENTUM))
    steps, begun, committed = state[COUNTS].tolist()
    counts = int(steps), int(begun), int(committed)
    if not flying:
        return counts, None
    number, place, *marks = state[FLIGHT].tolist()
    fragment = fragments[number]
    islands = len(marks) // 2
    landing = Landing(
        _outer(fragment, state, _NEXT_GLOBAL, _NEXT_MOMENTUM).to(fragment.device),
        finite=tuple(bool(mark) for mark in marks[:islands]),
        place=place,
        leaving=tuple(n for n, mark in enumerate(marks[islands:]) if mark),
    )
    return counts, (number, landing)


def _check(
    fragments: Sequence[Fragment], state: Mapping[str, Tensor], flying: Sequence[int]
) -> None:
    expected = {COUNTS: torch.Size([3])}
    for fragment in fragments:
        for name, part in fragment.named(fragment.state.parameters).items():
            expected |= {f"{name}/{kind}": part.shape for kind in (_GLOBAL, _MOMENTUM)}
    for number in flying:
        expected[FLIGHT] = state[FLIGHT].shape
        for name, part in fragments[number].named(fragments[number].state.parameters).items():
            expected |= {f"{name}/{kind}": part.shape for kind in (_NEXT_GLOBAL, _NEXT_MOMENTUM)}
    wrong = sorted(expected.keys() ^ state.keys())
    wrong += sorted(n for n in expected.keys() & state.keys() if state[n].shape != expected[n])
    if wrong:
        raise ValueError(
            f"The outer state does not fit these fragments: {wrong[:4]} are missing, unknown or of "
            "another shape. Load it with the same fragments and the same shards."
        )


def _named(
    fragment: Fragment, state: OuterState, parameters: str, momentum: str
) -> dict[str, Tensor]:
    named = fragment.named(state.parameters).items()
    found = {f"{name}/{parameters}": value for name, value in named}
    return found | {f"{n}/{momentum}": v for n, v in fragment.named(state.momentum).items()}


def _outer(
    fragment: Fragment, state: Mapping[str, Tensor], parameters: str, momentum: str
) -> OuterState:
    return OuterState(
        flat_of([state[f"{name}/{parameters}"] for name in fragment.names]),
        flat_of([state[f"{name}/{momentum}"] for name in fragment.names]),
    )
