"""Keeps copies of other hosts' snapshots in the memory of its host. One process per host, which
outlives ranks and has loaded no torch."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError

from trainer.keeping.folder import (
    BLOCK_BYTES,
    clean,
    install_share,
    list_shares,
    remove_copies,
    remove_older,
)
from trainer.keeping.header import PAGE_BYTES, Header, ShareDamaged
from trainer.keeping.hold import read_hold, write_hold

_NICENESS = 10
"""Training goes first, on a host whose cores are all taken."""

_BLOCK_S = 60.0
"""After this long without a block the other host counts as gone."""

_IN_FLIGHT = 2
"""Blocks that are asked for before the first is written."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A share that lies on a host."""

    part: str
    """Folder of its island in the run's; empty where there are no islands."""

    path: str
    header: Header


@dataclass(frozen=True, kw_only=True)
class Brought:
    """Shares of one step that were copied to a host."""

    shares: tuple[Found, ...]
    seconds: float
    """For which something was on its way."""

    problem: str = ""
    """Why there are not more."""

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        return sum(found.header.total_bytes for found in self.shares)


class Keeper:
    """An actor with several threads: it is asked for blocks while it brings some itself."""

    def __init__(self, folder: str) -> None:
        """`folder` is that of the run's shares, which ranks make."""
        self._folder = Path(folder)
        self._holding = threading.Lock()
        os.nice(_NICENESS)

    def hold(self, wanted: int) -> None:
        """Ask the ranks of this host to keep step `wanted` for copying."""
        for folder in self._parts():
            self._change(folder, wanted=wanted)

    def find(self, step: int) -> list[Found]:
        """The shares of `step` that ranks of this host wrote in the newest start they took part
        in."""
        own = [
            Found(part=_name_of(folder, self._folder), path=str(one.path), header=one.header)
            for folder in self._parts()
            for one in list_shares(folder)
            if one.path.name.startswith("slot-")
        ]
        newest = max((one.header.generation for one in own), default=0)
        return [one for one in own if (one.header.generation, one.header.step) == (newest, step)]

    def block(self, path: str, offset: int, length: int) -> NDArray[np.uint8]:
        """Bytes of a share."""
        return np.fromfile(path, dtype=np.uint8, count=length, offset=offset)

    def bring(self, step: int, others: Sequence[Any], rest: float) -> Brought:
        """Copy the shares of `step` from the hosts of these keepers, with a pause of `rest` times
        its length after each block."""
        pace = _Pace(rest)
        shares: list[Found] = []
        try:
            for other in others:
                for found in ray.get(other.find.remote(step), timeout=_BLOCK_S):
                    install_share(self._folder / found.part, _blocks(other, found, pace))
                    shares.append(found)
        except (OSError, ShareDamaged, RayError) as error:
            problem = str(error).strip().partition("\n")[0] or type(error).__name__
            return Brought(shares=tuple(shares), seconds=pace.seconds, problem=problem)
        return Brought(shares=tuple(shares), seconds=pace.seconds)

    def settle(self, step: int, generation: int) -> None:
        """All hosts have the copies of `step` of this start: what is older goes."""
        for folder in self._parts():
            self._change(folder, kept=step)
            remove_copies(folder, but=step)
            remove_older(folder, generation)

    def clean(self) -> None:
        """Delete all shares of the run on this host."""
        clean(self._folder)

    def _parts(self) -> list[Path]:
        """The folder, and those of islands in it."""
        return [self._folder, *sorted(self._folder.glob("island-*"))]

    def _change(self, folder: Path, **steps: int) -> None:
        # Two threads that each change a half would undo what the other wrote. Ranks that have no
        # folder yet will not see it, which shows when the step is looked for.
        with self._holding, suppress(OSError):
            write_hold(folder, replace(read_hold(folder), **steps))


def _name_of(part: Path, folder: Path) -> str:
    return "" if part == folder else part.name


class _Pace:
    """Measures how long the link is in use, and pauses in between."""

    def __init__(self, rest: float) -> None:
        self._rest = rest
        self.seconds = 0.0

    def spent(self, seconds: float) -> None:
        self.seconds += seconds
        time.sleep(self._rest * seconds)


def _blocks(other: Any, found: Found, pace: _Pace) -> Iterator[bytes]:
    """A share as `read_share` hands it out on its own host. Raises ShareDamaged where it was
    written to meanwhile."""
    page = found.header.packed().ljust(PAGE_BYTES, b"\0")
    yield page
    total = found.header.total_bytes
    cuts = [(at, min(BLOCK_BYTES, total - at)) for at in range(PAGE_BYTES, total, BLOCK_BYTES)]
    asked: list[ray.ObjectRef[Any]] = []
    for number in range(len(cuts)):
        began_s = time.monotonic()
        for cut in cuts[number + len(asked) : number + _IN_FLIGHT]:
            asked.append(other.block.remote(found.path, *cut))
        block = ray.get(asked.pop(0), timeout=_BLOCK_S)
        pace.spent(time.monotonic() - began_s)
        yield block.tobytes()
    after = ray.get(other.block.remote(found.path, 0, PAGE_BYTES), timeout=_BLOCK_S)
    if after.tobytes()[: len(found.header.packed())] != found.header.packed():
        raise ShareDamaged(f"{found.path} changed while it was copied")
