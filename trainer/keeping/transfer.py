"""Shares that go from rank to rank, where a host lacks what its ranks need.

Guarantees, each asserted in tests/trainer/keeping/test_source.py:
- a share that a host lacks comes from a host that has it, once per host, and only where needed;
- a share that cannot be read or written at either end does not hang the other.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from trainer.keeping.folder import BLOCK_BYTES, install_share, read_header


@dataclass(frozen=True, kw_only=True)
class Station:
    """What one rank tells the others before shares are moved."""

    host: str
    needed: Set[int]
    """Ranks of the snapshot whose shares it reads."""

    held: Set[int]
    """Ranks of the snapshot whose whole shares its host has."""


@dataclass(frozen=True)
class Move:
    """One share from one rank to another's host."""

    share: int
    sender: int
    receiver: int


def moves_between(stations: Sequence[Station], senders: Mapping[int, int]) -> list[Move]:
    """Which shares go where; pure. `senders` says which rank has each share."""
    found = []
    for share, sender in sorted(senders.items()):
        served: set[str] = set()
        for station in stations:
            if share not in station.needed or share in station.held or station.host in served:
                continue
            served.add(station.host)
            receiver = next(n for n, s in enumerate(stations) if s.host == station.host)
            found.append(Move(share, sender, receiver))
    return found


def send_share(path: Path, to: int, group: ProcessGroup) -> None:
    """Send a share to rank `to`, which calls `receive_share`; zero bytes where it is not whole."""
    try:
        num_bytes = read_header(path).total_bytes
        content = torch.from_file(str(path), shared=True, size=num_bytes, dtype=torch.uint8)
    except (OSError, ValueError, RuntimeError):
        content = torch.empty(0, dtype=torch.uint8)
    dist.send(torch.tensor([content.numel()]), to, group=group)
    for begin in range(0, content.numel(), BLOCK_BYTES):
        dist.send(content[begin : begin + BLOCK_BYTES].clone(), to, group=group)


def receive_share(folder: Path, sender: int, group: ProcessGroup) -> Path:
    """Install what rank `sender` sends; its path. Everything is received, whatever happens here.

    Raises ShareDamaged where it is not whole, OSError where there is no room for it.
    """
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, sender, group=group)
    blocks = _arriving(int(size), sender, group)
    try:
        return install_share(folder, (block.numpy().tobytes() for block in blocks))
    finally:
        for _ in blocks:
            pass


def _arriving(num_bytes: int, sender: int, group: ProcessGroup) -> Iterator[Tensor]:
    for begin in range(0, num_bytes, BLOCK_BYTES):
        block = torch.empty(min(BLOCK_BYTES, num_bytes - begin), dtype=torch.uint8)
        dist.recv(block, sender, group=group)
        yield block
