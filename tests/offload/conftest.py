"""A real tier in a temporary folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from offload.disk.tier import DiskTier


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    """Four MiB on two directories."""
    disk = DiskTier(
        [tmp_path / "a", tmp_path / "b"], capacity_bytes=1 << 22, stripe_bytes=16384, depth=2
    )
    yield disk
    disk.close()
