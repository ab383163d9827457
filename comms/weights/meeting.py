"""Where the ranks of a channel for weights meet, plan and connect."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch.distributed as dist

from comms.weights.agreement import Deadline, Problem
from comms.weights.codec import read_member, share_text
from comms.weights.plan import plan
from comms.weights.transfer import Group


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a channel meet. All of them name the same ranks in the same order."""

    store: dist.Store
    """A client that nothing else uses meanwhile, reached by all."""

    rank: int
    """In the channel. Rank 0 gives weights, decides, and plans."""

    names: Sequence[str]
    """Of the ranks, for messages, such as `trainer 0 on host a`."""

    prefix: str = "weights/0"
    """Of the keys in the store, and never used before: after a failure ranks meet under another."""


def connect(store: dist.Store, rank: int, ranks: int, deadline: Deadline) -> Group:
    """A gloo group of its own, of processes that need share no other group."""
    timeout = timedelta(seconds=max(0.1, deadline.left_s))
    group = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, ranks, timeout)
    # torch's stubs leave out what it sends with.
    return cast(Group, group)


def plan_for_all(store: dist.Store, meeting: Meeting, bucket_bytes: int) -> Problem | None:
    """Rank 0 plans, from what all have said of themselves, so that all have the same plan; other
    ranks do nothing. What is wrong with it, if anything."""
    if meeting.rank != 0:
        return None
    ranks = range(len(meeting.names))
    try:
        members = [read_member(store.get(f"member/{rank}")) for rank in ranks]
        found = plan(members, bucket_bytes=bucket_bytes)
    except ValueError as error:
        return Problem(str(error), blames=0)
    for rank in ranks:
        store.set(f"share/{rank}", share_text(found, rank))
    return None
