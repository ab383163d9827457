"""Work that all ranks do at once, before the first step, and that fails on all of them or on none.

Guarantee, asserted in tests/trainer/test_together.py: what one rank lacks is a ResourceError on
every rank, which names it.
"""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from offload.disk.files import DiskFailure
from offload.host_tensors import PinningRefused
from trainer.checkpoint.agreement import exchange
from trainer.errors import ResourceError

T = TypeVar("T")


def on_all_ranks(what: str, work: Callable[[], T]) -> T:
    """Do `work` once all ranks have begun it; its failure on one rank is raised on all."""
    result, problem = None, ""
    try:
        result = work()
    except (DiskFailure, PinningRefused, MemoryError, OSError) as error:
        problem = str(error)
    answers = exchange(dist.group.WORLD, problem)
    failed = [f"rank {rank}: {answer}" for rank, answer in enumerate(answers) if answer]
    if failed:
        raise ResourceError(f"ranks could not {what}: {'; '.join(failed)}")
    assert result is not None
    return result


def least(**values: float) -> dict[str, float]:
    """The smallest of each value on any rank. All ranks call it with the same names."""
    ranks = exchange(dist.group.WORLD, values)
    return {name: min(rank[name] for rank in ranks) for name in values}
