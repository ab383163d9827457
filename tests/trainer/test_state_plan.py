"""Where optimizer states go, and what that needs."""

import pytest

from offload.config import OffloadConfig
from offload.host_memory import HostLimits
from trainer.reads import ReadLog
from trainer.state_plan import (
    RankStates,
    StateOptions,
    candidates,
    need_of,
    options_of,
    problems_of,
)

GIB = 2**30
DISK = ("/scratch",)
CPU_RANK = RankStates(parameters=1 << 20, replicas=2, device_bytes=0)
GPU_RANK = RankStates(parameters=1 << 30, replicas=1, device_bytes=24 * GIB)


@pytest.mark.parametrize(
    ("config", "on_device", "wanted"),
    [
        (OffloadConfig(), False, ("device",)),
        (OffloadConfig(), True, ("device", "interleaved")),
        (OffloadConfig(disk=DISK), False, ("device", "disk")),
        (OffloadConfig(disk=DISK), True, ("device", "interleaved", "disk")),
        (OffloadConfig(optimizer="host"), True, ("host",)),
        (OffloadConfig(optimizer="disk", disk=DISK), False, ("disk",)),
    ],
)
def test_auto_tries_the_fastest_first_and_a_name_is_tried_alone(config, on_device, wanted):
    assert candidates(config, on_device=on_device) == wanted


READ_BY = {
    "device": set(),
    "host": {"subgroup_parameters", "buffers"},
    "interleaved": {"subgroup_parameters", "buffers", "share"},
    "disk": {
        "subgroup_parameters",
        "buffers",
        "disk",
        "disk_share",
        "disk_depth",
        "disk_timeout_s",
    },
}


@pytest.mark.parametrize("placement", READ_BY)
def test_only_keys_that_matter_to_a_placement_are_looked_at(placement):
    log = ReadLog()
    options = options_of(placement, log.watch(OffloadConfig(disk=DISK)))
    assert log.read == READ_BY[placement]
    assert options.placement == placement


def test_the_device_takes_no_share_unless_states_are_interleaved():
    config = OffloadConfig(share=0.25, disk=DISK)
    assert [options_of(p, config).share for p in ("host", "disk")] == [0.0, 0.0]
    assert options_of("interleaved", config).share == 0.25
    assert options_of("interleaved", OffloadConfig()).share is None


def test_a_need_counts_states_and_what_a_checkpoint_copies():
    million = CPU_RANK.parameters
    staged_bytes = 12 * million // 2
    assert (
        need_of(StateOptions(placement="device"), CPU_RANK, file_bytes=0).memory_bytes
        == staged_bytes + 8 * million
    )
    host = need_of(StateOptions(placement="host"), CPU_RANK, file_bytes=0)
    assert host.memory_bytes == (8 + 4 + 8) * million + staged_bytes
    options = StateOptions(placement="disk", disk_share=1.0, subgroup_parameters=4096)
    disk = need_of(options, CPU_RANK, file_bytes=9 * million)
    staging_bytes = (3 * 2 + 1) * 4 * 4096
    assert disk.memory_bytes == (4 + 8) * million + staged_bytes + staging_bytes
    assert disk.file_bytes == 9 * million
    on_device = need_of(StateOptions(placement="device"), GPU_RANK, file_bytes=0)
    assert on_device.memory_bytes == 12 * GPU_RANK.parameters


def _problems(placement, rank, limits, *, fraction=1.0):
    options = StateOptions(placement=placement, disk_share=1.0 if placement == "disk" else 0.0)
    need = need_of(options, rank, file_bytes=8 * rank.parameters if placement == "disk" else 0)
    return problems_of(options, [rank] * 2, [need] * 2, limits, fraction=fraction)


def test_what_does_not_fit_is_told_by_kind():
    roomy = HostLimits(free_bytes=500 * GIB, disk_bytes=500 * GIB)
    assert _problems("interleaved", GPU_RANK, roomy) == []
    (device,) = _problems("device", GPU_RANK, roomy)
    assert "16 GiB of weights, gradients and states are more than 60% of a device's 24" in device
    (memory,) = _problems("interleaved", GPU_RANK, roomy, fraction=0.1)
    assert "2 ranks need" in memory
    (disk,) = _problems("disk", CPU_RANK, HostLimits(free_bytes=500 * GIB, disk_bytes=GIB // 128))
    assert "are needed in offload.disk" in disk
