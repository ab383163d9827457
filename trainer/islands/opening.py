"""Join this rank's island with the others."""

import re
import time
from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.distributed as dist

from comms.config import RankEnvironment
from comms.ledger import Ledger
from comms.outer.diloco import StreamingDiloco
from comms.outer.schedule import split_parameters
from comms.telemetry.recorder import Recorder
from trainer.assembly import Assembly
from trainer.config import JobConfig
from trainer.errors import RecipeError
from trainer.islands.exchange import Islands
from trainer.islands.groups import make_island_groups
from trainer.islands.news import Newswire
from trainer.islands.pace import Pace
from trainer.planner.batch import batch_of

_BLOCK = re.compile(r"layers\.\d+(?=\.)")
_PROBE_BYTES = 1 << 18


def open_islands(
    config: JobConfig,
    assembly: Assembly,
    environment: RankEnvironment,
    *,
    recorder: Recorder | None = None,
) -> Islands | None:
    """What this rank exchanges with the other islands; None where there never were any. All ranks
    call it, with weights that are filled alike. With `recorder`, whom this rank waits for can be
    read from outside. Raises RecipeError where the exchanges do not fit the model."""
    layout = assembly.layout
    members = environment.islands or tuple(range(layout.island))
    if len(members) != layout.island:
        raise RecipeError(
            f"parallel.island={layout.island}, and {len(members)} islands are to go on: {members}"
        )
    if layout.island == 1 and not environment.islands:
        return None
    parameters = dict(assembly.weights.named_parameters())
    blocks = block_prefixes(parameters)
    # The stages of a pipeline may have different numbers of them.
    fewest = torch.tensor(len(blocks))
    dist.all_reduce(fewest, op=dist.ReduceOp.MIN)
    try:
        schedule = config.comms.island.schedule(blocks=int(fewest))
    except ValueError as error:
        raise RecipeError(f"comms.island.{error}") from error
    if schedule.fragments > int(fewest):
        raise RecipeError(
            f"comms.island.fragments={schedule.fragments} is more than the {int(fewest)} blocks "
            "that a rank has; choose fewer, or auto"
        )
    groups = make_island_groups(layout)
    ledger = Ledger(recorder=recorder)
    fragments = split_parameters(parameters, blocks, schedule.fragments)
    index, weights = layout.island_of(environment.rank), config.comms.island.weights(layout.island)
    outer = StreamingDiloco(
        fragments,
        group=groups.across,
        inside=groups.inside,
        config=replace(config.comms.island.diloco(), weight=weights[index]),
        ledger=ledger,
    )
    rate = _bytes_per_s(groups.across)
    ledger.take()
    return Islands(
        layout=layout,
        index=index,
        members=members,
        weights=weights,
        pace=Pace(weights, batch_of(config, environment.world_size).sequences_per_step),
        outer=outer,
        schedule=schedule,
        fragments=fragments,
        wire=None if groups.firsts is None else Newswire(groups.firsts, ledger),
        ledger=ledger,
        bytes_per_s=rate,
    )


def block_prefixes(names: Iterable[str]) -> list[str]:
    """The blocks that parameters of these names lie in, in order, such as "layers.3"."""
    found = {match.group() for match in map(_BLOCK.match, names) if match}
    return sorted(found, key=lambda prefix: int(prefix.partition(".")[2]))


def _bytes_per_s(group: dist.ProcessGroup) -> float:
    """What a rank sends per second while it gathers from the same place of all islands, as all
    others do. Who is alone sends nothing."""
    if group.size() == 1:
        return float("inf")
    own = torch.zeros(_PROBE_BYTES, dtype=torch.uint8)
    rows = [torch.empty_like(own) for _ in range(group.size())]
    fastest_s = float("inf")
    for _ in range(2):
        dist.barrier(group)
        begin_s = time.perf_counter()
        dist.all_gather(rows, own, group=group)
        fastest_s = min(fastest_s, time.perf_counter() - begin_s)
    return _PROBE_BYTES * (group.size() - 1) / fastest_s
