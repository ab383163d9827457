"""States go where they fit, on all ranks alike, or the run does not start."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from comms.config import RankEnvironment
from offload.config import OffloadConfig
from parallel.layout import Layout
from tests.disks import files_up_to
from tests.ranks import run_on_ranks
from trainer.config import JobConfig
from trainer.errors import ResourceError
from trainer.offloading import build_optimizer


def _build(rank, config, ranks=2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 64), nn.Linear(64, 40))
    optimizer = build_optimizer(
        model,
        JobConfig(offload=config),
        Layout(replica=ranks),
        RankEnvironment.on_this_machine(rank, ranks, 0),
    )
    optimizer.close()
    return optimizer.placement, optimizer.share


def _attempt(rank, config):
    try:
        return _build(rank, config)
    except ResourceError as error:
        return str(error)


def _several(rank, configs):
    return [_attempt(rank, config) for config in configs]


def test_every_place_is_taken_or_refused_by_all_ranks(tmp_path):
    (tmp_path / "file").write_text("")
    disk = str(tmp_path / "scratch")
    below_a_file = str(tmp_path / "file" / "scratch")
    configs = [
        OffloadConfig(),
        OffloadConfig(optimizer="device"),
        OffloadConfig(optimizer="host"),
        OffloadConfig(optimizer="interleaved", share=0.5),
        OffloadConfig(optimizer="disk", disk=(disk,)),
        OffloadConfig(optimizer="disk", disk=(disk,), disk_share=0.0, disk_depth=1),
        OffloadConfig(disk=(disk,)),
        OffloadConfig(optimizer="disk", disk=(below_a_file,)),
        OffloadConfig(optimizer="host", host_memory_fraction=0.0),
        OffloadConfig(disk=(disk,), host_memory_fraction=0.0),
    ]
    ours, theirs = run_on_ranks(2, _several, configs)
    assert ours == theirs
    assert ours[:7] == [
        ("device", None),
        ("device", None),
        ("host", 0.0),
        ("interleaved", 0.5),
        ("disk", 0.0),
        ("disk", 0.0),
        ("device", None),
    ]
    assert "make room for optimizer states" in ours[7]
    assert "name a directory" in ours[7]
    assert "do not fit as offload.optimizer=host asks (host: 127.0.0.1: 2 ranks need" in ours[8]
    assert "device: 127.0.0.1: 2 ranks need" in ours[9]
    assert "| disk: 127.0.0.1: 2 ranks need" in ours[9]


def _without_room(rank, config):
    # A preallocation is refused as by a full disk.
    with files_up_to(4096) if rank == 1 else nullcontext():
        return _attempt(rank, config)


@pytest.mark.parametrize("depth", [1, "auto"])
def test_too_little_room_on_one_rank_is_told_by_all(tmp_path, depth):
    config = OffloadConfig(optimizer="disk", disk=(str(tmp_path),), disk_depth=depth)
    ours, theirs = run_on_ranks(2, _without_room, config)
    assert ours == theirs
    assert "rank 1: cannot preallocate" in ours
    assert "bytes are free; free some, or name another" in ours
