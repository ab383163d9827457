"""Islands go on from snapshots in memory: find them, and load what each island needs of them.

Guarantees, asserted in tests/invariants/test_islands_killed.py:
- a run whose ranks are killed goes on bitwise, in mid-exchange too, whichever island was ahead;
- without the ranks of an island the others go on from their own snapshots;
- an island whose snapshot is gone goes on from what the islands agreed on;
- where there are copies of it on another host, all go back to their step, and lose nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from comms.outer.fragment import OuterState
from trainer.checkpoint.loading import Chosen, choose, load_chosen
from trainer.errors import DataError
from trainer.islands.checkpoints import require_same_schedule
from trainer.islands.exchange import Islands
from trainer.islands.news import News
from trainer.islands.reunion import Reunion, Standing, reunite
from trainer.islands.saved import SENT, OuterSlots, flat_part, outer_slots, zeros_for
from trainer.islands.share import BatchShare, Part
from trainer.keeping.source import SnapshotSource
from trainer.replica_state import PREFIX

_GLOBAL, _MOMENTUM = "outer.global.", "outer.momentum."


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The snapshots that islands go on from together."""

    reunion: Reunion
    chosen: Mapping[int, Chosen]
    """By the number of the island."""

    def meta(self, island: int) -> dict[str, Any]:
        """What the snapshot says that an island goes on from."""
        return self.chosen[self.reunion.source(island)].manifest.meta

    def share(self, islands: Islands) -> BatchShare:
        """Which part of each batch this island takes from now on."""
        part = Part(islands.index, islands.weights)
        if islands.number not in self.reunion.standings:
            return BatchShare(part)
        before = self.meta(islands.number)["outer"]
        there = Part(before["members"].index(islands.number), tuple(before["weights"]))
        return BatchShare(part, self.reunion.last_step, there)


def island_folder(folder: Path, island: int) -> Path:
    """Where the shares of one island are, below those of its run."""
    return folder / f"island-{island}"


def find_kept(
    sources: Mapping[int, Sequence[SnapshotSource]], islands: Islands, group: ProcessGroup
) -> Kept | None:
    """How islands go on from `sources`, those of each island by preference, the same on all ranks.
    None where no island can. All ranks of `group`, which is everybody, call it."""
    chosen = {
        number: found
        for number in islands.members
        if (found := _first_whole(sources.get(number, ()), group)) is not None
    }
    kept = _kept(islands.members, chosen)
    if kept is None or not kept.reunion.joining:
        return kept
    generation = kept.reunion.standings[kept.reunion.furthest].generation
    together = _of_one_step(sources, islands.members, generation, group)
    return (together and _kept(islands.members, together)) or kept


def load_kept(
    kept: Kept, tensors: Mapping[str, Tensor], islands: Islands, group: ProcessGroup
) -> None:
    """Fill this rank's own `tensors`, and go on with the exchanges. All ranks of `group` call it.

    Raises RecipeError where a snapshot is of another model or schedule, DataError where it cannot
    be read.
    """
    reunion, number = kept.reunion, islands.number
    meta = kept.meta(number)["outer"]
    require_same_schedule(meta["schedule"], islands)
    own = _Wanted(islands, tensors, meta, joins=number in reunion.joining)
    told: dict[str, Tensor] = {}
    if reunion.listens(number):
        fragment = islands.fragments[islands.schedule.fragment(reunion.exchange)]
        told = zeros_for(fragment, _GLOBAL) | zeros_for(fragment, _MOMENTUM)
    for island, chosen in kept.chosen.items():
        state: dict[str, Tensor] = {}
        if island == reunion.teller:
            state |= told
        if island == reunion.source(number):
            state |= own.tensors
        chosen.source.prepare(state, group)
        load_chosen(state, chosen, group, spare=_passed_over)
    if own.joins:
        own.fill_joined()
    islands.outer.load_state_dict(own.slots.state(meta["counts"], None))
    islands.outer.last_finite = _finite(meta, islands.members)
    islands.first_step = meta["first_step"]
    if told:
        assert reunion.teller is not None
        islands.outer.foretell(
            reunion.exchange,
            OuterState(_part_of(told, _GLOBAL), _part_of(told, _MOMENTUM)),
            _finite(kept.meta(reunion.teller)["outer"], islands.members),
        )
    if meta["flight"] is not None:
        sent = flat_part(own.sent)
        # What an island has not learned has no weight in the mean.
        islands.outer.resend(sent.fill_(torch.nan) if own.joins else sent)
    _tell_again(kept, islands)


class _Wanted:
    """What one rank reads of the snapshot that its island goes on from."""

    def __init__(
        self,
        islands: Islands,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        *,
        joins: bool,
    ) -> None:
        self.joins = joins
        self.slots: OuterSlots = outer_slots(islands.parameters, (), kept=True)
        self.sent: dict[str, Tensor] = {}
        if meta["flight"] is not None:
            self.sent = zeros_for(islands.fragments[meta["flight"]], SENT)
        self._own = dict(tensors)
        self._parameters = {f"model.{name}": name for name in islands.parameters}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By stored name. Who joins takes the parameters that all agreed on as its own."""
        own = self._own
        if self.joins:
            own = {name: t for name, t in own.items() if name not in self._parameters}
        return {**own, **self.slots.tensors, **({} if self.joins else self.sent)}

    def fill_joined(self) -> None:
        """Give the parameters of who joins their values."""
        for stored, name in self._parameters.items():
            self._own[stored].copy_(self.slots.tensors[_GLOBAL + name])


def _kept(members: Sequence[int], chosen: Mapping[int, Chosen]) -> Kept | None:
    reunion = reunite(members, {n: _standing(c) for n, c in chosen.items()})
    if reunion is None:
        return None
    return Kept(reunion=reunion, chosen={n: chosen[n] for n in sorted(reunion.standings)})


def _of_one_step(
    sources: Mapping[int, Sequence[SnapshotSource]],
    members: Sequence[int],
    generation: int,
    group: ProcessGroup,
) -> dict[int, Chosen] | None:
    """The newest step that every island has a whole snapshot of, by that start of the run: what is
    older was gone on from without some of them."""
    by_step = {
        number: {s.step: s for s in sources.get(number, ()) if s.generation == generation}
        for number in members
    }
    common = set.intersection(*(set(steps) for steps in by_step.values()))
    for step in sorted(common, reverse=True):
        found = {number: _first_whole([by_step[number][step]], group) for number in members}
        whole = {number: chosen for number, chosen in found.items() if chosen is not None}
        if len(whole) == len(members):
            return whole
    return None


def _first_whole(sources: Sequence[SnapshotSource], group: ProcessGroup) -> Chosen | None:
    try:
        return choose({}, sources, group) if sources else None
    except DataError:
        return None


def _standing(chosen: Chosen) -> Standing:
    meta = chosen.manifest.meta
    _, begun, committed = meta["outer"]["counts"]
    assert isinstance(chosen.source, SnapshotSource)
    return Standing(
        generation=chosen.source.generation,
        step=meta["step"],
        begun=begun,
        committed=committed,
        members=tuple(meta["outer"]["members"]),
    )


def _passed_over(name: str) -> bool:
    return name.startswith((PREFIX, "model.", SENT))


def _part_of(told: Mapping[str, Tensor], prefix: str) -> Tensor:
    return flat_part({name: t for name, t in told.items() if name.startswith(prefix)})


def _finite(snapshot: Mapping[str, Any], members: Sequence[int]) -> tuple[bool, ...]:
    """Which of the islands that go on took part in the exchange that was merged last before a
    snapshot."""
    took_part = dict(zip(snapshot["members"], snapshot["finite"], strict=False))
    return tuple(took_part.get(number, False) for number in members)


def _tell_again(kept: Kept, islands: Islands) -> None:
    reunion = kept.reunion
    if islands.wire is None:
        return
    told = {
        number: [News(*row) for row in kept.meta(number)["outer"]["news"]]
        for number in islands.members
    }
    steps = [int(rows[0].step) for rows in told.values() if rows]
    first = max([reunion.first_step - 1, *steps])
    rows = told[islands.number]
    if islands.number in reunion.joining:
        # Its source tells of these steps itself.
        rows = [replace(row, targets=0.0, loss_sum=0.0, aux_sum=0.0) for row in rows]
    islands.wire.tell_again(rows, first=first, heard_until=reunion.last_step)
