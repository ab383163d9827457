"""Disks for tests: a real tier in a temporary folder, and one that stops taking writes."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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


@pytest.fixture
def writes_refused() -> Callable[[], AbstractContextManager[None]]:
    """Inside, the kernel refuses every write of this process to a file, as a full disk would."""

    @contextmanager
    def refuse() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return refuse
