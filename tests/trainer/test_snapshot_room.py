"""How many hosts keep copies, and what of a share counts for the room that they need."""

from dataclasses import replace

import pytest
import torch.distributed as dist

from comms.config import RankEnvironment
from tests.ranks import run_on_ranks
from tests.trainer.keeping.shares import mixed_state
from trainer.checkpoint.share import plan_share
from trainer.errors import ResourceError
from trainer.keeping.config import KeepingConfig
from trainer.snapshot_room import fitting_copies

TOO_MUCH_BYTES = 1 << 60


def _copies_of_two_hosts(rank: int, folder: str):
    group = dist.group.WORLD
    share = plan_share(mixed_state(0), group)
    environment = replace(RankEnvironment.on_this_machine(rank, 2, 1), host=f"host-{rank}")
    config = KeepingConfig(dir=folder)
    plain = fitting_copies(config, share, environment, group)
    islands = fitting_copies(config, share, environment, group, islands=True)
    asked = replace(config, replica_hosts=1)
    assert fitting_copies(asked, share, environment, group, islands=True) == (1, "")
    with pytest.raises(ResourceError, match="snapshots of 1 ranks need") as refused:
        fitting_copies(config, share, environment, group, reserve_bytes=TOO_MUCH_BYTES)
    return plain, islands, str(refused.value)


def test_what_was_not_sent_needs_room_and_islands_have_copies_where_asked(tmp_path):
    found = run_on_ranks(2, _copies_of_two_hosts, str(tmp_path))
    assert found[0] == found[1]
    plain, islands, refused = found[0]
    assert plain == (1, "")
    assert islands[0] == 0
    assert "keep.replica_hosts=auto is 0 with islands" in islands[1]
    assert "keep.interval_steps=0" in refused
