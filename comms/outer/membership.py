"""Bring islands that meet to one outer state, sending only what differs.

Guarantees, each asserted in tests/comms/outer/test_membership.py:
- afterwards all islands hold the outer state of the one with the most committed exchanges, the
  first of several, bitwise;
- fragments that are equal everywhere are not sent;
- islands that could not train together are refused on all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comms.outer.config import IslandLayout
from comms.outer.fragment import Fragment, OuterState
from comms.outer.link import IslandLink
from comms.outer.shards import parts_flat, whole_flat, whole_flat_bytes

_POSITIONS = 65_521
"""A prime: the weights of a checksum repeat only after so many entries."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What the islands have in common after they met."""

    begun: int
    committed: int
    replaced: tuple[int, ...]
    """Fragments that this island took over from another."""


def agree(
    link: IslandLink,
    fragments: Sequence[Fragment],
    layout: IslandLayout,
    *,
    fingerprint: int,
    begun: int,
    committed: int,
) -> Agreed:
    """Meet the other islands. All ranks of all islands call it.

    Raises ValueError where fingerprints differ.
    """
    sums = [_checksum(_shared(link, f, f.state.parameters, layout)) for f in fragments]
    momenta = [_checksum(_shared(link, f, f.state.momentum, layout)) for f in fragments]
    row = torch.tensor([fingerprint, begun, committed, *sums, *momenta], dtype=torch.int64)
    link.count_gather(row.nbytes)
    rows = link.gather(row)
    if not bool((rows[:, 0] == fingerprint).all()):
        raise ValueError(
            "Islands differ in parameters, fragments, wire, layout, outer_lr or outer_momentum; "
            f"these must be equal (places {_others(rows[:, 0])} differ from place 0). "
            "With layout='same' the shards must be equal too; layout='own' allows any."
        )
    source = int(rows[:, 2].argmax())
    replaced = []
    for number, fragment in enumerate(fragments):
        marks = rows[:, [3 + number, 3 + number + len(fragments)]]
        if bool((marks == marks[source]).all()):
            continue
        _take_over(link, fragment, layout, source)
        if not bool((marks[link.place] == marks[source]).all()):
            replaced.append(number)
    return Agreed(int(rows[:, 1].max()), int(rows[source, 2]), tuple(replaced))


def _take_over(link: IslandLink, fragment: Fragment, layout: IslandLayout, source: int) -> None:
    """Give all islands one fragment's outer state, which only the source had."""
    found = []
    for mine in (fragment.state.parameters, fragment.state.momentum):
        # The shape of the whole is known without asking; its contents matter at the source alone.
        value = _shared(link, fragment, mine, layout).clone()
        link.spread(value, source)
        found.append(parts_flat(fragment.parameters, value) if layout == "own" else value)
    fragment.restore(OuterState(*found))


def _shared(link: IslandLink, fragment: Fragment, flat: Tensor, layout: IslandLayout) -> Tensor:
    """What islands have in common of a flat tensor: all of it, or this shard."""
    if layout == "same":
        return flat
    with link.gathering_inside(whole_flat_bytes(fragment.parameters)):
        return whole_flat(fragment.parameters, flat)


def _checksum(flat: Tensor) -> int:
    bits = flat.contiguous().view(torch.int32).long()
    weights = torch.arange(flat.numel(), device=flat.device) % _POSITIONS + 1
    return int((bits * weights).sum())


def _others(fingerprints: Tensor) -> list[int]:
    return (fingerprints != fingerprints[0]).nonzero().flatten().tolist()
