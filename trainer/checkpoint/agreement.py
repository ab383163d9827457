"""Ranks work side by side and go on only if all of them succeeded.

Messages are JSON: nothing that arrives is unpickled.

Guarantees, each asserted in tests/trainer/checkpoint/test_agreement.py:
- an error of one rank is raised on every rank, naming the rank and the cause;
- ranks that are at different points of their work find out instead of waiting for each other.
"""

import errno
import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from trainer.errors import InfrastructureError

T = TypeVar("T")

_FAILURES = (OSError, RuntimeError, ValueError, MemoryError)
_HINTS = {
    errno.ENOSPC: "free space on that disk, or lower checkpoint.keep_last",
    errno.EDQUOT: "free space within the quota, or lower checkpoint.keep_last",
    errno.EFBIG: "raise the limit on file sizes",
    errno.EACCES: "give this user the right to write there",
    errno.EROFS: "choose a run.dir that can be written",
    errno.ENOENT: "all hosts must see the same run.dir",
}


class RanksFailed(InfrastructureError):
    """At least one rank failed, or ranks are not at the same point. Raised on all ranks alike."""


def rank_of(group: ProcessGroup | None) -> int:
    """This process's rank in `group`; 0 without a group."""
    return 0 if group is None else dist.get_rank(group)


def size_of(group: ProcessGroup | None) -> int:
    """Number of ranks in `group`; 1 without a group."""
    return 1 if group is None else dist.get_world_size(group)


def exchange(group: ProcessGroup | None, value: Any) -> list[Any]:
    """Every rank's `value`, which must be JSON, in order of rank. All ranks of `group` call it.

    `group` carries CPU tensors. Raises RuntimeError where a rank is lost.
    """
    if group is None:
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(size_of(group))]
    dist.all_gather(sizes, torch.tensor([payload.numel()]), group=group)
    lengths = [int(size) for size in sizes]
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: payload.numel()] = payload
    received = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(received, padded, group=group)
    return [
        json.loads(block[:length].numpy().tobytes())
        for block, length in zip(received, lengths, strict=True)
    ]


def agree(group: ProcessGroup | None, topic: str, work: Callable[[], T]) -> T:
    """Do `work` and return its result once all ranks have done theirs.

    All ranks of `group` call it with the same `topic`. Raises RanksFailed on all of them if one
    failed, RuntimeError where a rank is lost.
    """
    result, error = _attempt(work)
    _settle(group, topic, None, error)
    return result  # type: ignore[return-value]


def agree_all(group: ProcessGroup | None, topic: str, work: Callable[[], T]) -> list[T]:
    """As `agree`, and the results of all ranks, which must be JSON, in order of rank."""
    result, error = _attempt(work)
    return _settle(group, topic, result, error)


def _attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return work(), None
    except _FAILURES as error:
        return None, describe(error)


def describe(error: BaseException) -> str:
    """Cause and, where it is known, remedy."""
    text = str(error) or type(error).__name__
    hint = _HINTS.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{text} ({hint})" if hint else text


def _settle(group: ProcessGroup | None, topic: str, value: Any, error: str | None) -> list[Any]:
    replies = exchange(group, {"topic": topic, "value": value, "error": error})
    topics = [reply["topic"] for reply in replies]
    if len(set(topics)) > 1:
        places = "; ".join(f"rank {rank}: {topic}" for rank, topic in enumerate(topics))
        raise RanksFailed(f"ranks are not at the same point: {places}")
    failures = [
        f"rank {rank}: {reply['error']}" for rank, reply in enumerate(replies) if reply["error"]
    ]
    if failures:
        raise RanksFailed("; ".join(failures))
    return [reply["value"] for reply in replies]
