"""Whether a run has snapshots in memory, whether there is room for them, and whose they are."""

import json
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import broadcast_bytes
from trainer.assembly import Assembly
from trainer.checkpoint.agreement import RanksFailed, agree, exchange
from trainer.checkpoint.share import plan_share
from trainer.describing import kept_of
from trainer.errors import RecipeError, ResourceError
from trainer.islands.exchange import Islands
from trainer.islands.memory import island_folder
from trainer.keeping.config import KeepingConfig
from trainer.keeping.folder import clean, run_folder_in_memory
from trainer.keeping.record import Record, next_start, read_record, write_record
from trainer.keeping.rescue import keep_newest
from trainer.keeping.slot import Owner
from trainer.keeping.snapshots import Snapshots
from trainer.keeping.source import SnapshotSource, find_snapshots
from trainer.memory_saver import Describe, MemorySaver
from trainer.run_folder import RunFolder, append_event
from trainer.snapshot_room import fitting_copies
from trainer.state import tensors_to_fill
from trainer.unsent import Unsent


def folder_of(config: KeepingConfig, folder: RunFolder, island: int | None = None) -> Path:
    """Where the snapshots of a run are, or those of one of its islands, on every host."""
    base = run_folder_in_memory(config.dir, name=folder.root.name, run_root=folder.root)
    return base if island is None else island_folder(base, island)


def rescued_of(folder: RunFolder, island: int | None = None) -> Path:
    """The same for snapshots that were saved to disk after their driver had gone."""
    return folder.rescued if island is None else island_folder(folder.rescued, island)


def find_own_snapshots(
    config: KeepingConfig,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    island: int | None = None,
) -> list[SnapshotSource]:
    """What earlier starts of this run, or of one of its islands, left in the hosts' memory, the one
    to prefer first. All ranks call it."""
    if not config.every_steps:
        return []
    payload = b""
    if environment.rank == 0:
        before = read_record(folder.snapshots)
        payload = json.dumps(None if before is None else asdict(before)).encode()
    fields = json.loads(broadcast_bytes(payload, group=group))
    if fields is None:
        return []
    record = Record(**fields)
    try:
        return find_snapshots(
            folder_of(config, folder, island),
            run=record.run,
            valid_from=record.valid_from,
            rank=environment.rank,
            host=environment.host,
            group=group,
            rescued=rescued_of(folder, island),
        )
    except RanksFailed as failure:
        raise ResourceError(f"snapshots cannot be looked for: {failure}") from failure


def begin_start(
    folder: RunFolder, environment: RankEnvironment, group: dist.ProcessGroup, *, forget: bool
) -> Record:
    """Count this start of the run in its folder. All ranks call it and get the same record."""
    payload = b""
    if environment.rank == 0:
        before = read_record(folder.snapshots)
        record = next_start(before, token=secrets.token_hex(16), forget=forget)
        write_record(folder.snapshots, record)
        payload = json.dumps(asdict(record)).encode()
    return Record(**json.loads(broadcast_bytes(payload, group=group)))


def open_memory_saver(
    config: KeepingConfig,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    *,
    assembly: Assembly,
    islands: Islands | None,
    describe_run: Describe,
    forget: bool,
) -> MemorySaver:
    """What takes snapshots in memory, where there are to be any."""
    describe_kept = kept_of(assembly, describe_run, islands)
    unsent = Unsent(assembly, environment, islands)
    snapshots = open_snapshots(
        config,
        folder,
        environment,
        group,
        assembly=assembly,
        islands=islands,
        unsent=unsent,
        meta=describe_kept(),
        forget=forget,
    )
    return MemorySaver(
        snapshots,
        interval_steps=config.every_steps,
        folder=folder_of(config, folder),
        run=folder,
        assembly=assembly,
        islands=islands,
        unsent=unsent,
        describe_run=describe_kept,
        environment=environment,
    )


def open_snapshots(
    config: KeepingConfig,
    folder: RunFolder,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    *,
    assembly: Assembly,
    islands: Islands | None,
    unsent: Unsent,
    meta: dict[str, Any],
    forget: bool,
) -> Snapshots | None:
    """This rank's slots, or None where there are to be none. All ranks call it alike.

    `forget` drops what earlier starts of the run left. Where the recipe asks for snapshots that
    cannot be, raises RecipeError or ResourceError; where it leaves it open, records why not.
    """
    in_memory = folder_of(config, folder)
    if not config.every_steps:
        _forget_all(folder, environment, group, in_memory)
        return None
    record = begin_start(folder, environment, group, forget=forget)
    if environment.rank == 0:
        if forget:
            clean(folder.rescued)
        keep_newest(folder.rescued)
        _forget_other_kind(folder.rescued, several=islands is not None)
    if environment.local_rank == 0:
        if forget:
            clean(in_memory)
        _forget_other_kind(in_memory, several=islands is not None)
    exchange(group, None)  # nobody makes files that a neighbour is about to delete
    try:
        return _open(
            config,
            in_memory,
            folder.events,
            environment,
            group,
            record,
            assembly=assembly,
            islands=islands,
            unsent=unsent,
            meta=meta,
        )
    except (RecipeError, ResourceError) as error:
        if config.interval_steps != "auto":
            raise
        if environment.rank == 0:
            append_event(
                folder.events,
                now_s=time.time(),
                kind="snapshots_off",
                step=meta["step"],
                cause=str(error),
            )
        return None


def _forget_all(
    folder: RunFolder, environment: RankEnvironment, group: dist.ProcessGroup, in_memory: Path
) -> None:
    """A run that makes no more snapshots must not be overtaken later by its old ones."""
    if environment.rank == 0 and read_record(folder.snapshots) is not None:
        folder.snapshots.unlink()
        clean(folder.rescued)
    if environment.local_rank == 0:
        clean(in_memory)
    exchange(group, None)


def _forget_other_kind(in_memory: Path, *, several: bool) -> None:
    """What a start with islands left must not overtake one without them later, or the reverse."""
    for place in in_memory.glob("generation-*" if several else "island-*"):
        shutil.rmtree(place, ignore_errors=True)


def _open(
    config: KeepingConfig,
    in_memory: Path,
    events: Path,
    environment: RankEnvironment,
    group: dist.ProcessGroup,
    record: Record,
    *,
    assembly: Assembly,
    islands: Islands | None,
    unsent: Unsent,
    meta: dict[str, Any],
) -> Snapshots:
    _require_all_in_memory(assembly)
    state = tensors_to_fill(assembly.weights, assembly.optimizer)
    rank, ranks, inside = environment.rank, environment.world_size, group
    if islands is not None:
        state |= islands.kept_tensors()
        in_memory = island_folder(in_memory, islands.number)
        ranks = assembly.layout.island_ranks
        rank %= ranks
        # Nothing else runs yet on the group that will be the vote's.
        inside = group if assembly.group is None else assembly.group
    share = plan_share(state, inside)
    copies, problem = fitting_copies(
        config,
        share,
        environment,
        group,
        reserve_bytes=unsent.reserve_bytes,
        islands=islands is not None,
    )
    if problem and environment.rank == 0:
        append_event(
            events, now_s=time.time(), kind="replicas_off", step=meta["step"], cause=problem
        )
    owner = Owner(run=record.run, generation=record.generation, rank=rank, ranks=ranks)
    make = partial(
        Snapshots,
        in_memory,
        owner,
        share,
        slots=config.slots,
        meta=meta,
        reserve_bytes=unsent.reserve_bytes,
        replicated=copies > 0,
    )
    return _made(make, config.dir, group)


def _made(make: Callable[[], Snapshots], base: str, group: dist.ProcessGroup) -> Snapshots:
    """Slots on all ranks, or on none. Raises ResourceError where one cannot have them."""
    made: list[Snapshots] = []
    try:
        agree(group, "making room for snapshots", lambda: made.append(make()))
    except RanksFailed as failure:
        for snapshots in made:
            snapshots.close()
            snapshots.remove()
        raise ResourceError(
            f"snapshots could not be set up in {base}: {failure}. Make room there, name "
            "another folder (keep.dir), or set keep.interval_steps=0 to do without"
        ) from failure
    return made[0]


def _require_all_in_memory(assembly: Assembly) -> None:
    """Raise RecipeError where a part of the state is only in checkpoints."""
    if assembly.optimizer.placement == "disk":
        raise RecipeError(
            "keep.interval_steps: optimizer states are on disk (offload.optimizer), and a snapshot "
            "would read all of them and hold them in memory; leave it at auto or 0, and lower "
            "checkpoint.interval_steps instead"
        )
