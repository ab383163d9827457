"""The guarantees of comms/telemetry/completion.py, one by one."""

import os

import pytest
import torch
import torch.distributed as dist

from comms.ledger import Ledger
from comms.telemetry.board import Board
from comms.telemetry.completion import DeviceEnds
from comms.telemetry.reading import read_board
from comms.telemetry.recorder import Recorder


class _Point:
    """A point that a stream passes when it is told to."""

    def __init__(self) -> None:
        self.passed = False

    def query(self) -> bool:
        return self.passed


def test_a_collective_ends_when_its_stream_has_passed_it():
    ended: list[int] = []
    ends, first, second = DeviceEnds(ended.append), _Point(), _Point()
    ends.expect(1, first, (5, 6))
    ends.expect(1, second, (7,))
    ends.poll()
    assert ended == []
    first.passed = True
    ends.poll()
    assert ended == [5, 6]
    second.passed = True
    ends.poll()
    ends.poll()
    assert ended == [5, 6, 7]


def test_a_stream_that_hangs_does_not_hide_the_ends_of_another():
    ended: list[int] = []
    ends, going = DeviceEnds(ended.append), _Point()
    ends.expect(1, _Point(), (5,))
    ends.expect(2, going, (6,))
    going.passed = True
    ends.poll()
    assert ended == [6]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_host_is_ahead_and_the_record_is_not(tmp_path):
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD
    board = Board.create(tmp_path / "a", rank=0, pid=os.getpid())
    recorder = Recorder(board, heartbeat_interval_s=60, on_device=True)
    ledger, x = Ledger(recorder=recorder), torch.ones(4, device="cuda")
    dist.all_reduce(x, group=group)
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    with ledger.collective("replica", "all_reduce", 16, group):
        dist.all_reduce(x, group=group)
    assert len(read_board(tmp_path / "a").pending) == 1
    torch.cuda.synchronize()
    recorder.end()
    reading = read_board(tmp_path / "a")
    assert (len(reading.pending), len(reading.recent)) == (0, 1)
    recorder.close()
    dist.destroy_process_group()
