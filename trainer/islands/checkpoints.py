"""Put an island into a checkpoint, and take it out again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from trainer.checkpoint.loading import Chosen, Loaded, load_chosen
from trainer.errors import RecipeError
from trainer.islands.exchange import Islands, schedule_record
from trainer.islands.saved import (
    Kind,
    OuterSlots,
    kind_of,
    outer_slots,
    outer_tensors,
    own_name,
    own_prefix,
    passed_over,
    prefix_of,
)

_PROBE = "probe_loss"
_UPDATES = "updates"


@dataclass(frozen=True, kw_only=True)
class LoadedIsland:
    """What a checkpoint had for this rank's island."""

    loaded: Loaded
    kind: Kind
    stored: tuple[int, ...]
    """The islands of the checkpoint; none where it is of a run that never had several."""

    before: str
    """What stands before the names of what replicas had not sent."""

    updates: int
    """Made of the moments that were loaded."""

    probe_loss: float | None
    """Of the weights that were loaded; None where they were never probed."""


def saved_with(
    islands: Islands, tensors: Mapping[str, Tensor], *, probe_loss: float, updates: int
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """What a checkpoint holds of this rank, and what it says of the exchanges.

    `tensors` are this island's own, as a run without islands would save them.
    """
    state = islands.outer.state_dict()
    prefix = prefix_of(islands.number)
    found = {prefix + name: tensor for name, tensor in tensors.items()}
    found[prefix + _PROBE] = torch.tensor(probe_loss, dtype=torch.float64)
    # A step may have been skipped on one island alone.
    found[prefix + _UPDATES] = torch.tensor(updates, dtype=torch.float64)
    if islands.index == 0:
        parameters = {f"model.{name}" for name in islands.parameters}
        model = (name for name in tensors if name.startswith("model."))
        found |= {name: tensors[name] for name in model if name not in parameters}
    return found | outer_tensors(state, islands.parameters), islands.description(state)


def load_island(
    tensors: Mapping[str, Tensor], chosen: Chosen, group: ProcessGroup, islands: Islands | None
) -> LoadedIsland:
    """Fill this island's own `tensors` from a checkpoint of any number of islands, and its outer
    state from one of the same number. All ranks call it. Snapshots are of one island alone.

    Raises RecipeError where the checkpoint is of another model, or exchanges go by another schedule
    than those in it; DataError where it cannot be read.
    """
    meta = chosen.manifest.meta
    stored = _islands_of(meta)
    now = () if islands is None else islands.members
    kind = kind_of(stored, now)
    number = stored[0] if kind == "gathered" else 0
    if kind == "same":
        assert islands is not None
        number = islands.number
    state = {own_name(name, kind, number): tensor for name, tensor in tensors.items()}
    before = own_prefix(kind, number)
    probe, updates = (torch.zeros((), dtype=torch.float64) for _ in range(2))
    slots: OuterSlots | None = None
    if kind == "same":
        assert islands is not None
        require_same_schedule(meta["outer"]["schedule"], islands)
        slots = outer_slots(islands.parameters, _flying(meta["outer"]["flight"], islands))
        state |= {**slots.tensors, before + _PROBE: probe}
    if before:
        state[before + _UPDATES] = updates
    spare = passed_over(kind, left=set(stored).difference(now))
    loaded = load_chosen(state, chosen, group, spare=spare)
    if islands is not None and slots is not None:
        _resume(islands, slots, meta["outer"])
    return LoadedIsland(
        loaded=loaded,
        kind=kind,
        stored=stored,
        before=before,
        updates=int(updates) if before else meta["updates"],
        probe_loss=_probe_loss(kind, loaded, float(probe)),
    )


def _resume(islands: Islands, slots: OuterSlots, description: Mapping[str, Any]) -> None:
    flight = description["flight"]
    if flight is not None:
        number, _, *marks = flight
        # Rank 0 described it, which has the first place.
        flight = [number, _islands_of({"outer": description}).index(islands.number), *marks]
    islands.outer.load_state_dict(slots.state(description["counts"], flight))
    islands.first_step = description["first_step"]


def _islands_of(meta: Mapping[str, Any]) -> tuple[int, ...]:
    outer = meta.get("outer")
    return () if outer is None else tuple(outer["members"])


def _probe_loss(kind: Kind, loaded: Loaded, own: float) -> float | None:
    if kind == "gathered" or loaded.place == "memory":
        return None
    loss: float = own if kind == "same" else loaded.meta["probe_loss"]
    return loss


def _flying(flight: list[int] | None, islands: Islands) -> set[str]:
    return set() if flight is None else set(islands.fragments[flight[0]])


def require_same_schedule(stored: Mapping[str, int], islands: Islands) -> None:
    """Raise RecipeError where exchanges went by another schedule."""
    now = schedule_record(islands.schedule)
    changed = [
        f"{name}: {stored[name]} in the checkpoint, {now[name]} now"
        for name in now
        if stored[name] != now[name]
    ]
    if changed:
        raise RecipeError(
            "the checkpoint's exchanges between islands do not fit this recipe "
            f"({'; '.join(changed)}). Restore these keys of comms.island, or start a new run from "
            "exported weights (braid export, then model.path)"
        )
