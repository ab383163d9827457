import pytest
import torch

from offload.disk.files import DiskFailure
from offload.disk_lane import DiskLane
from offload.subgroups import cut_subgroups
from tests.disks import files_up_to


def lane_of(tier, *, count=7, buffers=3, overlap=True, master=False):
    subgroups = cut_subgroups([[(0, 1024)] for _ in range(count)], 1024)
    return DiskLane(
        tier, subgroups, with_master=lambda _: master, buffers=buffers, overlap=overlap
    ), subgroups


def fill_all(lane, subgroups, value):
    for subgroup in subgroups:
        lane.replace(subgroup, lambda state, s=subgroup: state.exp_avg.fill_(value + s.index))


def one_pass(lane, expected):
    """Take all, check against `expected` by subgroup, add one."""
    lane.begin()
    order = []
    while lane.remaining:
        subgroup, state = lane.take()
        assert torch.all(state.exp_avg == expected + subgroup.index)
        assert torch.all(state.exp_avg_sq == expected)
        state.exp_avg.add_(1)
        state.exp_avg_sq.add_(1)
        lane.give(subgroup)
        order.append(subgroup.index)
    return order


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("buffers", [2, 3, 9])
def test_each_pass_hands_out_every_subgroup_once_with_its_newest_state(tier, overlap, buffers):
    lane, subgroups = lane_of(tier, buffers=buffers, overlap=overlap)
    fill_all(lane, subgroups, 0.0)
    for step in range(6):
        assert sorted(one_pass(lane, float(step))) == list(range(7))
    lane.settle()


def test_the_last_subgroups_of_a_pass_need_no_disk_in_the_next(tier):
    lane, subgroups = lane_of(tier, buffers=3)
    fill_all(lane, subgroups, 0.0)
    first = one_pass(lane, 0.0)
    lane.settle()
    before = tier.counters.read_bytes, tier.counters.written_bytes
    second = one_pass(lane, 1.0)
    lane.settle()
    assert second[:2] == first[-2:]
    record_bytes = 2 * 4 * 1024
    assert tier.counters.read_bytes - before[0] == 5 * record_bytes
    assert tier.counters.written_bytes - before[1] == 5 * record_bytes


def test_reads_run_ahead_but_in_no_more_buffers_than_there_are(tier):
    lane, subgroups = lane_of(tier, buffers=3)
    fill_all(lane, subgroups, 0.0)
    before = tier.counters.read_bytes
    lane.begin()
    lane.begin()
    lane.settle()
    assert tier.counters.read_bytes - before == 3 * 2 * 4 * 1024
    assert lane.remaining == 0
    one_pass(lane, 0.0)


@pytest.mark.parametrize("during_pass", [True, False])
def test_stored_shows_the_newest_state(tier, during_pass):
    lane, subgroups = lane_of(tier, master=True)
    fill_all(lane, subgroups, 0.0)
    one_pass(lane, 0.0)
    if during_pass:
        lane.begin()
    for subgroup in subgroups:
        state = lane.stored(subgroup)
        assert torch.all(state.exp_avg == 1.0 + subgroup.index)
        assert torch.all(state.master == 0.0)
    one_pass(lane, 1.0)


def test_a_failed_write_surfaces(tier):
    lane, subgroups = lane_of(tier)
    fill_all(lane, subgroups, 0.0)
    with files_up_to(0), pytest.raises(DiskFailure, match="cannot write"):
        one_pass_to_disk(lane)


def one_pass_to_disk(lane):
    one_pass(lane, 0.0)
    lane.settle()


def test_waiting_for_the_disk_is_counted(tier):
    subgroups = cut_subgroups([[(0, 1024)] for _ in range(2)], 1024)
    ticks = iter(range(100))
    lane = DiskLane(
        tier,
        subgroups,
        with_master=lambda _: False,
        buffers=2,
        clock=lambda: float(next(ticks)),
    )
    fill_all(lane, subgroups, 0.0)
    one_pass(lane, 0.0)
    assert lane.take_stall_s() == 2.0
    assert lane.take_stall_s() == 0.0
