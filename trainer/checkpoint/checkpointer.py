"""Save the state of a run while it trains.

Guarantees, each asserted in tests/trainer/checkpoint/test_checkpointer.py:
- what is saved is the state at the moment of the call, whatever happens to it afterwards;
- a save succeeds on all ranks or fails on all ranks, and nobody waits for a rank that failed;
- a failed save leaves earlier checkpoints and `latest` as they were, and no folder behind;
- one save is under way at a time, and outcomes are reported once, in order.
"""

import contextlib
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from torch.distributed import ProcessGroup

from trainer.checkpoint.agreement import RanksFailed, agree, agree_all, describe, rank_of
from trainer.checkpoint.folder import commit, create_aside, prune, remove_leftovers, step_name
from trainer.checkpoint.manifest import FileEntry, encode, encode_tensors, write_manifest
from trainer.checkpoint.shard_file import header_of, write_shard
from trainer.checkpoint.share import Share, State, form_of, plan_share
from trainer.checkpoint.staging import Staged, StagingBuffer


@dataclass(frozen=True, kw_only=True)
class SaveOutcome:
    """How one save ended."""

    step: int
    path: Path
    """The checkpoint's folder; it exists only without an error."""

    seconds: float
    """From the call of `save` until everything was on disk."""

    blocked_s: float
    """The part of it in which the caller of `save` waited."""

    bytes: int
    """Data of all ranks."""

    error: str | None
    """Which rank failed and why, the same text on all ranks that are still there."""


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What stays the same from save to save while the state keeps its form."""

    share: Share
    header: bytes
    tensors_json: str


@dataclass(frozen=True, kw_only=True)
class _Save:
    """One save on its way to disk."""

    step: int
    prepared: _Prepared
    staged: Staged | None
    staging_error: RuntimeError | None
    meta_json: str
    started_s: float
    blocked_s: float


class Checkpointer:
    """Writes checkpoints of one run into one folder that all ranks see.

    Every rank of `group` has one and calls `save` in the same order. `group` carries CPU tensors
    and is used by nothing else: saving meets on it from its own thread. Without a group this
    process is the only one. When a rank is lost, the group is of no more use: close this one and
    make another over a new group.
    """

    def __init__(
        self, directory: Path, *, keep_last: int, group: ProcessGroup | None, blocking: bool
    ) -> None:
        self._directory = directory
        self._keep_last = keep_last
        self._group = group
        self._blocking = blocking
        self._is_first = rank_of(group) == 0
        self._buffer = StagingBuffer()
        self._prepared: _Prepared | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[SaveOutcome] | None = None
        self._finished: list[SaveOutcome] = []
        self._aside: Path | None = None

    def save(self, step: int, state: State, meta: Mapping[str, Any]) -> None:
        """Start saving `state` as the checkpoint of `step`. All ranks call it alike.

        Waits for the save before, copies this rank's share and returns; a blocking checkpointer
        returns when all is on disk. The first call, and one with other names, shapes or placements
        than the last, also waits for the other ranks. `meta` is stored as JSON, rank 0's counts.

        Failures to write are reported by `poll` and `wait`. Raises TypeError where `meta` is not
        JSON, RanksFailed and ValueError where the state cannot be stored: mistakes of the caller.
        """
        started_s = perf_counter()
        self._collect()
        meta_json = json.dumps(meta, separators=(",", ":"))
        prepared = self._prepare(state)
        staged, staging_error = None, None
        try:
            staged = self._buffer.stage(prepared.share, state)
        except RuntimeError as error:
            # Raised only after the other ranks know, or they would wait for this one.
            staging_error = error
        save = _Save(
            step=step,
            prepared=prepared,
            staged=staged,
            staging_error=staging_error,
            meta_json=meta_json,
            started_s=started_s,
            blocked_s=perf_counter() - started_s,
        )
        self._running = self._thread.submit(self._carry_out, save)
        if self._blocking:
            self._collect()

    def poll(self) -> list[SaveOutcome]:
        """Outcomes not reported before, without waiting."""
        if self._running is not None and self._running.done():
            self._collect()
        return self._report()

    def wait(self) -> list[SaveOutcome]:
        """Wait for the save under way; outcomes not reported before."""
        self._collect()
        return self._report()

    def close(self) -> None:
        """Wait for the save under way and end the thread. `poll` still reports its outcome."""
        self._collect()
        self._thread.shutdown()

    def _collect(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            self._finished.append(running.result())

    def _report(self) -> list[SaveOutcome]:
        finished, self._finished = self._finished, []
        return finished

    def _prepare(self, state: State) -> _Prepared:
        if self._prepared is None or self._prepared.share.form != form_of(state):
            share = plan_share(state, self._group)
            self._prepared = _Prepared(
                share=share,
                header=header_of(share.pieces),
                tensors_json=encode_tensors(share.tensors) if self._is_first else "",
            )
        return self._prepared

    def _carry_out(self, save: _Save) -> SaveOutcome:
        written, error = 0, None
        try:
            written = self._write(save)
        except RanksFailed as failure:
            error = str(failure)
            self._discard_aside()
        except RuntimeError as failure:
            error = f"a rank was lost while saving: {describe(failure)}"
        seconds = perf_counter() - save.started_s
        return SaveOutcome(
            step=save.step,
            path=self._directory / step_name(save.step),
            seconds=seconds,
            blocked_s=seconds if self._blocking else save.blocked_s,
            bytes=written,
            error=error,
        )

    def _write(self, save: _Save) -> int:
        topic = f"saving step {save.step}"
        name = agree_all(self._group, f"{topic}, opening", lambda: self._open(save))[0]
        aside = self._directory / name
        replies = agree_all(self._group, f"{topic}, writing", lambda: _write_share(aside, save))
        files = {
            reply["file"]: FileEntry(reply["bytes"], reply["crc32"])
            for reply in replies
            if reply is not None
        }
        agree(self._group, f"{topic}, committing", lambda: self._commit(aside, save, files))
        return sum(entry.bytes for entry in files.values())

    def _open(self, save: _Save) -> str:
        if save.staging_error is not None:
            raise save.staging_error
        if not self._is_first:
            return ""
        remove_leftovers(self._directory)
        self._aside = create_aside(self._directory, save.step)
        return self._aside.name

    def _discard_aside(self) -> None:
        """After a failure that all ranks know of, so that nobody writes there any more."""
        if self._aside is not None:
            # What cannot be deleted now is deleted before the next save.
            with contextlib.suppress(OSError):
                shutil.rmtree(self._aside)
            self._aside = None

    def _commit(self, aside: Path, save: _Save, files: dict[str, FileEntry]) -> None:
        if not self._is_first:
            return
        for name, entry in files.items():
            found = (aside / name).stat().st_size
            if found != entry.bytes:
                raise ValueError(f"{name} has {found} bytes instead of {entry.bytes} after writing")
        text = encode(
            step=save.step,
            files=files,
            tensors_json=save.prepared.tensors_json,
            meta_json=save.meta_json,
        )
        write_manifest(aside, text)
        commit(aside, save.step)
        self._aside = None
        prune(self._directory, keep_last=self._keep_last, written_step=save.step)


def _write_share(aside: Path, save: _Save) -> dict[str, Any] | None:
    """Write this rank's file; its name, size and checksum, or None where it has nothing."""
    share = save.prepared.share
    if not share.pieces:
        return None
    assert save.staged is not None
    save.staged.wait_until_copied()
    entry = write_shard(aside / share.file, save.prepared.header, save.staged.payload)
    return {"file": share.file, **asdict(entry)}
