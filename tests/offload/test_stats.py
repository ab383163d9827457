import torch
from torch import nn

from offload.optimizer import InterleavedAdamW


def test_what_was_moved_is_counted(tier):
    parameter = nn.Parameter(torch.zeros(10 * 1024))
    optimizer = InterleavedAdamW(
        [parameter], disk=tier, disk_share=0.5, subgroup_parameters=1024, overlap=False
    )
    parameter.sum().backward()
    optimizer.step()
    stats = optimizer.last_update
    assert (stats.disk_subgroups, stats.host_subgroups, stats.device_subgroups) == (5, 5, 0)
    # Two fp32 moments each way; fp32 weights in memory are their own masters.
    assert stats.disk_read_bytes == stats.disk_written_bytes == 5 * 1024 * 8
    assert stats.fetched_bytes == stats.flushed_bytes == 0
    assert 0.0 < stats.host_s <= stats.total_s
    assert stats.stall_s <= stats.total_s
