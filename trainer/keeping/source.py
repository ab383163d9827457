"""A snapshot as something to restore from, with its shares wherever hosts hold them.

Guarantees, each asserted in tests/trainer/keeping/test_source.py:
- no share is read whose checksum does not match; where another host has a whole copy, that counts;
- all ranks come to the same answer, and where a share is whole nowhere they say which;
- any number of ranks and any layout gets the bits that were kept.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup

from trainer.checkpoint.agreement import RanksFailed, agree, agree_all, describe, exchange
from trainer.checkpoint.filling import BlockReader, files_needed
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.share import State
from trainer.keeping.folder import FoundShare, check_share, list_shares, rank_folder, read_header
from trainer.keeping.header import Header, ShareDamaged
from trainer.keeping.newest import CommonStep, HeldShare, common_steps
from trainer.keeping.pieces import decode_description, joined
from trainer.keeping.reading import OpenShare, ShareReader, description_text
from trainer.keeping.transfer import Station, moves_between, receive_share, send_share

_FAILURES = (OSError, ValueError)


class SnapshotSource:
    """One snapshot; a `Source`. All ranks make it alike, from the same `common`."""

    place = "memory"

    def __init__(self, common: CommonStep, folder: Path, *, run: str, rank: int, host: str) -> None:
        self.path = Path(common.shares[0][0].path).parents[1] / f"step-{common.step:08d}"
        self.step = common.step
        self.generation = common.generation
        self._common = common
        self._folder = folder
        self._run = run
        self._rank = rank
        self._host = host
        self._open: dict[str, OpenShare] = {}
        self._found: tuple[list[list[HeldShare]], Manifest] | None = None

    def prepare(self, state: State, group: ProcessGroup | None) -> Manifest:
        """Check every share on every host, the first time, and bring what this host lacks and
        needs."""
        if self._found is None:
            whole = self._checked(group)
            self._found = whole, self._described(whole, group)
        whole, manifest = self._found
        needed = {_number(file) for file in files_needed(state, manifest.tensors)}
        paths = self._bring(whole, needed, group)
        self._open = agree(
            group,
            f"opening {self.path.name}",
            lambda: {
                _file(share): OpenShare(paths[share], self._expected(paths[share], share))
                for share in sorted(needed)
            },
        )
        return manifest

    def _described(
        self, whole: Sequence[Sequence[HeldShare]], group: ProcessGroup | None
    ) -> Manifest:
        texts = agree_all(group, f"describing {self.path.name}", lambda: self._descriptions(whole))
        described = {int(n): text for reply in texts for n, text in reply.items()}
        return joined(
            self._common.step,
            [(_file(n), decode_description(described[n].encode())) for n in sorted(described)],
        )

    @contextmanager
    def opened(self) -> Iterator[BlockReader]:
        """The shares that `prepare` found."""
        yield ShareReader(self._open)
        for share in self._open.values():
            share.require_unchanged()
        self._open = {}

    def _checked(self, group: ProcessGroup | None) -> list[list[HeldShare]]:
        """The copies of each share that are whole. Raises RanksFailed where one has none."""
        own = {
            str(number): self._problem(held)
            for number, held in enumerate(_flat(self._common))
            if _checker(held, self._common) == self._rank
        }
        replies = exchange(group, own)
        problems = {int(number): text for reply in replies for number, text in reply.items()}
        bad = {
            (held.host, held.path): problems[number]
            for number, held in enumerate(_flat(self._common))
            if problems.get(number) is not None
        }
        good = [
            [h for h in copies if (h.host, h.path) not in bad] for copies in self._common.shares
        ]
        if missing := [rank for rank, copies in enumerate(good) if not copies]:
            reasons = "; ".join(f"{host}: {text}" for (host, _), text in sorted(bad.items()))
            raise RanksFailed(f"the snapshot lacks whole shares of ranks {missing}: {reasons}")
        return good

    def _problem(self, held: HeldShare) -> str | None:
        try:
            self._expected(Path(held.path), held.rank)
            check_share(Path(held.path))
        except _FAILURES as error:
            return describe(error)
        return None

    def _expected(self, path: Path, share: int) -> Header:
        """The share's header. Raises ShareDamaged where another step is in its place."""
        header = read_header(path)
        common = self._common
        found = (header.run, header.generation, header.step, header.rank, header.ranks)
        if found != (self._run, common.generation, common.step, share, len(common.shares)):
            raise ShareDamaged(f"{path} holds step {header.step} by now")
        return header

    def _descriptions(self, whole: Sequence[Sequence[HeldShare]]) -> dict[str, str]:
        return {
            str(share): description_text(Path(copies[0].path)).decode()
            for share, copies in enumerate(whole)
            if copies[0].holder == self._rank
        }

    def _bring(
        self, whole: Sequence[Sequence[HeldShare]], needed: set[int], group: ProcessGroup | None
    ) -> dict[int, Path]:
        """Where this host has each share that this rank needs."""
        own = {
            share: Path(held.path)
            for share, copies in enumerate(whole)
            for held in copies
            if held.host == self._host
        }
        replies = exchange(
            group, {"host": self._host, "needed": sorted(needed), "held": sorted(own)}
        )
        stations = [
            Station(host=r["host"], needed=set(r["needed"]), held=set(r["held"])) for r in replies
        ]
        senders = {share: copies[0].holder for share, copies in enumerate(whole)}
        errors = []
        for move in moves_between(stations, senders):
            assert group is not None, "one rank has all shares or none"
            if move.sender == self._rank:
                send_share(Path(whole[move.share][0].path), move.receiver, group)
            elif move.receiver == self._rank:
                try:
                    receive_share(self._folder, move.sender, group)
                except _FAILURES as error:
                    errors.append(f"share of rank {move.share}: {describe(error)}")
        agree(group, f"bringing {self.path.name}", lambda: _raise_any(errors))
        return {share: own.get(share, self._copy(share)) for share in needed}

    def _copy(self, share: int) -> Path:
        """Where `install_share` put what came from another host."""
        common = self._common
        place = rank_folder(
            self._folder, generation=common.generation, rank=share, ranks=len(common.shares)
        )
        return place / f"copy-{common.step:08d}"


def find_snapshots(
    folder: Path,
    *,
    run: str,
    valid_from: int,
    rank: int,
    host: str,
    group: ProcessGroup | None,
    rescued: Path | None = None,
) -> list[SnapshotSource]:
    """Every snapshot of `run` that all ranks together can restore, the one to prefer first.

    All ranks call it. `rescued` is a folder that holds further shares. Starts before generation
    `valid_from` are not looked at. Raises RanksFailed where a rank may not read its folder.
    """

    def own() -> list[dict[str, Any]]:
        return [
            asdict(_held(found, rank, host))
            for found in (
                *list_shares(folder),
                *([] if rescued is None else list_shares(rescued, trusted=True)),
            )
            if found.header.run == run and found.header.generation >= valid_from
        ]

    everywhere = agree_all(group, "looking for snapshots", own)
    held = [HeldShare(**fields) for reply in everywhere for fields in reply]
    return [
        SnapshotSource(common, folder, run=run, rank=rank, host=host)
        for common in common_steps(held)
    ]


def _held(found: FoundShare, rank: int, host: str) -> HeldShare:
    header = found.header
    return HeldShare(
        holder=rank,
        host=host,
        path=str(found.path),
        generation=header.generation,
        step=header.step,
        rank=header.rank,
        ranks=header.ranks,
    )


def _flat(common: CommonStep) -> list[HeldShare]:
    return [held for copies in common.shares for held in copies]


def _checker(held: HeldShare, common: CommonStep) -> int:
    """Which rank reads a copy to check it: ranks that see the same file take turns over shares.

    The same for all entries of the file; only the checker's own entry is in charge.
    """
    seen_by = sorted(
        h.holder for h in common.shares[held.rank] if (h.host, h.path) == (held.host, held.path)
    )
    chosen = seen_by[held.rank % len(seen_by)]
    return chosen if held.holder == chosen else -1


def _file(share: int) -> str:
    return f"share-{share:05d}"


def _number(file: str) -> int:
    return int(file.removeprefix("share-"))


def _raise_any(errors: Sequence[str]) -> None:
    if errors:
        raise ValueError("; ".join(errors))
