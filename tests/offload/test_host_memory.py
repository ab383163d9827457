import os

import pytest
import torch
from torch import nn

from offload.host_memory import (
    GIB,
    HostLimits,
    RankNeed,
    find_problems,
    optimizer_need,
    read_limits,
)
from offload.optimizer import InterleavedAdamW

ROOMY = HostLimits(free_bytes=100 * GIB)


def test_all_ranks_of_a_host_are_added_up():
    need = RankNeed(pinned_bytes=20 * GIB, pageable_bytes=4 * GIB, shared_bytes=1 * GIB)
    assert find_problems([need] * 3, ROOMY) == []
    (problem,) = find_problems([need] * 4, ROOMY)
    assert "4 ranks need 100 GiB of host memory, 100 GiB are free and 90% of it may be" in problem


def test_the_control_group_decides_where_it_is_tighter():
    limits = HostLimits(free_bytes=100 * GIB, cgroup_bytes=10 * GIB)
    (problem,) = find_problems([RankNeed(pageable_bytes=10 * GIB)], limits)
    assert "10 GiB are left to its control group" in problem


@pytest.mark.parametrize(
    ("need", "limit", "word"),
    [
        ({"shared_bytes": 2 * GIB}, {"shared_bytes": GIB}, "/dev/shm"),
        ({"file_bytes": 2 * GIB}, {"disk_bytes": GIB}, "offload.disk"),
        ({"pageable_bytes": 2 * GIB}, {"address_bytes": GIB}, "ulimit -v"),
    ],
)
def test_each_limit_holds_for_its_own_kind(need, limit, word):
    limits = HostLimits(free_bytes=100 * GIB, **limit)
    assert find_problems([], limits) == []
    (problem,) = find_problems([RankNeed(**need)], limits)
    assert word in problem
    assert "2 GiB are needed" in problem
    assert "raise it" in problem


def test_locked_memory_counts_only_where_pinning_locks():
    limits = HostLimits(free_bytes=100 * GIB, locked_bytes=8 << 20)
    need = RankNeed(pinned_bytes=GIB)
    assert find_problems([need], limits) == []
    (problem,) = find_problems([need], limits, locks_count=True)
    assert "ulimit -l" in problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_disk", [True, False])
def test_the_need_is_what_the_optimizer_takes(tier, dtype, on_disk):
    parameter = nn.Parameter(torch.zeros(200_000, dtype=dtype))
    optimizer = InterleavedAdamW(
        [parameter], disk=tier if on_disk else None, subgroup_parameters=20_000
    )
    need = optimizer_need(
        200_000,
        weight_bytes=parameter.element_size(),
        device=False,
        disk_share=float(on_disk),
        subgroup_parameters=20_000,
    )
    states = [t for state in optimizer._engine._lanes.host.values() for t in state.tensors()]
    staging = optimizer._engine._lanes.disk._free if on_disk else []
    taken_bytes = sum(t.nbytes for t in [*states, *staging, optimizer._engine._old])
    gradient_bytes = 4 * 200_000
    assert need.memory_bytes == pytest.approx(taken_bytes + gradient_bytes, rel=0.05)
    used_bytes = (4 << 20) - tier.free_bytes
    assert need.file_bytes == pytest.approx(used_bytes, rel=0.05)


def test_limits_are_read_from_this_host(tmp_path):
    limits = read_limits(disks=[tmp_path / "not" / "yet", tmp_path])
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < limits.free_bytes <= total_bytes
    statistics = os.statvfs(tmp_path)
    assert 0 < limits.disk_bytes <= statistics.f_blocks * statistics.f_frsize


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tightest_control_group_on_the_way_up_counts(tmp_path):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
    write(proc / "self/cgroup", "0::/job/rank\n")
    write(cgroups / "job/rank/memory.max", "max\n")
    write(cgroups / "job/memory.max", "500000\n")
    write(cgroups / "job/memory.current", "300000\n")
    write(cgroups / "job/memory.stat", "anon 1\ninactive_file 50000\n")
    limits = read_limits(proc=proc, cgroups=cgroups)
    assert limits.free_bytes == 1000 * 1024
    assert limits.cgroup_bytes == 250_000


def test_first_version_control_groups_are_read(tmp_path):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemAvailable: 1 kB\n")
    write(proc / "self/cgroup", "5:cpu:/\n4:memory:/box\n")
    write(cgroups / "memory/box/memory.limit_in_bytes", "1000\n")
    write(cgroups / "memory/box/memory.usage_in_bytes", "400\n")
    assert read_limits(proc=proc, cgroups=cgroups).cgroup_bytes == 600
