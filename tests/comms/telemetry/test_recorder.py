"""The guarantees of comms/telemetry/recorder.py, one by one."""

import os
import time
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from comms.ledger import Ledger
from comms.telemetry.board import Board
from comms.telemetry.cores import waited_for_core_s
from comms.telemetry.layout import Sizes
from comms.telemetry.reading import read_board
from comms.telemetry.recorder import Recorder
from comms.telemetry.records import RankReading
from tests.ranks import run_on_ranks


def _recorder(path: Path, rank: int = 0, sizes: Sizes | None = None, **options) -> Recorder:
    options = {"core_waits": lambda: 0.0, **options}
    return Recorder(Board.create(path, rank=rank, pid=os.getpid(), sizes=sizes), **options)


def _meetings(rank: int, folder: Path) -> dict[str, RankReading]:
    """Two ranks that meet in the world, by themselves, and on a thread's group."""
    path = folder / f"rank-{rank}"
    recorder = _recorder(path, rank)
    ledger, world, own = Ledger(recorder=recorder), dist.group.WORLD, dist.new_group([0, 1])
    alone = [dist.new_group([other]) for other in range(2)][rank]
    found = {}
    recorder.begin_step(4, "training")
    x = torch.ones(3)
    for _ in range(3):
        with ledger.collective("replica", "all_reduce", 12, world):
            dist.all_reduce(x, group=world)
    with ledger.collective("shard", "all_reduce", 0, alone):
        dist.all_reduce(x, group=alone)
    token = ledger.begin("replica", "broadcast", 12, world)
    work = dist.broadcast(x, group_src=0, group=world, async_op=True)
    with ledger.waiting(token):
        work.wait()
    with ledger.recorded("feed", "broadcast", 4, own):
        dist.broadcast(x, group_src=0, group=own)
    found["met"] = read_board(path)
    recorder.meet_anew(1)
    # Rank 0 ends before rank 1 has begun: it fails on the other, who is left alone.
    if rank == 1:
        with pytest.raises(RuntimeError), ledger.collective("replica", "all_gather", 12, world):
            dist.all_gather([torch.empty(3), torch.empty(4)], x, group=world)
    found["failed"] = read_board(path)
    recorder.close()
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict[str, RankReading]]:
    return run_on_ranks(2, _meetings, tmp_path_factory.mktemp("boards"))


def test_ranks_give_a_collective_the_same_communicator_and_number(both):
    first, second = (found["met"] for found in both)
    shared = set(first.last_sequence) & set(second.last_sequence)
    assert {first.last_sequence[name] for name in shared} == {4, 1}
    assert all(first.members[name] == second.members[name] == (0, 1) for name in shared)
    for reading in (first, second):
        (alone,) = set(reading.last_sequence) - shared
        assert reading.members[alone] == (reading.rank,)
        assert reading.pending == ()
        kinds = [record.kind for record in reading.recent]
        assert kinds == ["all_reduce"] * 4 + ["broadcast"] * 2
        assert (reading.phase, reading.step) == ("training", 4)
        for record in reading.recent:
            assert record.phase == "training"
            assert record.enqueued_s <= record.awaited_s <= record.ended_s <= time.monotonic()
    numbered = [
        [(r.communicator, r.sequence, r.kind) for r in reading.recent if r.communicator in shared]
        for reading in (first, second)
    ]
    assert numbered[0] == numbered[1]


def test_a_collective_that_failed_stays_pending_and_a_new_meeting_counts_anew(both):
    first, second = (found["failed"] for found in both)
    assert (first.generation, first.last_sequence, first.recent) == (1, {}, ())
    (record,) = second.pending
    assert (record.kind, record.sequence, record.ended_s) == ("all_gather", 1, None)
    assert second.last_sequence == {record.communicator: 1}


@pytest.fixture
def group():
    """A group of this process alone."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_own_compute_of_a_step_ends_at_the_first_wait(tmp_path, group):
    ticks = count(100.0)
    recorder = _recorder(tmp_path / "a", clock=lambda: next(ticks), heartbeat_interval_s=60)
    ledger = Ledger(recorder=recorder)
    for step in (1, 2):
        recorder.begin_step(step, "rounds")
        began_s = next(ticks)
        # What another thread does, and what merely begins, is no wait of this step's.
        with ledger.recorded("feed", "broadcast", 1, group, beside=True):
            pass
        token = ledger.begin("replica", "all_reduce", 8, group)
        blocked_s = next(ticks) + 1
        for _ in range(step):
            with ledger.waiting(token):
                pass
        recorder.end_step(0.25)
        reading = read_board(tmp_path / "a")
        assert reading.compute_s[-1] == blocked_s - (began_s - 2), step
        assert reading.waited_s[-1] == 0.25
    recorder.begin_step(3, "rounds")
    recorder.end_step(0.0)
    reading = read_board(tmp_path / "a")
    assert reading.steps == (1, 2, 3)
    # Without a wait all of the step is its own: three looks at the clock.
    assert reading.compute_s[-1] == 2.0
    recorder.close()


def test_waiting_for_a_core_is_no_compute(tmp_path, group):
    now = {"s": 100.0, "starved_s": 7.0}

    def spend(seconds, starved_s):
        now["s"] += seconds
        now["starved_s"] += starved_s

    recorder = _recorder(
        tmp_path / "a",
        clock=lambda: now["s"],
        core_waits=lambda: now["starved_s"],
        heartbeat_interval_s=60,
    )
    ledger = Ledger(recorder=recorder)
    for _ in range(2):
        spend(2.0, 1.5)
        recorder.begin_step(1, "data")
        spend(1.0, 0.25)
        recorder.begin_work(64.0)
        spend(8.0, 6.0)
        with ledger.collective("replica", "all_reduce", 8, group):
            spend(3.0, 0.5)
        spend(1.0, 1.0)
        recorder.end_step(3.0)
    recorder.begin_step(2, "data")
    spend(4.0, 3.0)
    recorder.end_step(0.0)
    reading = read_board(tmp_path / "a")
    assert reading.compute_s == (2.0, 2.0, 1.0)
    # What lies between two steps is counted with the later one; before the first nothing was.
    assert reading.waited_s == (3.0 + 7.75, 3.0 + 9.25, 3.0)
    recorder.close()


def test_a_thread_that_shares_a_core_waits_for_it_and_one_that_sleeps_does_not():
    before_s = waited_for_core_s()
    time.sleep(0.05)
    asleep_s = waited_for_core_s() - before_s
    assert before_s >= 0.0
    assert asleep_s >= 0.0
    if not os.path.exists("/proc/thread-self/schedstat"):
        assert before_s == 0.0


def test_waiting_for_the_batch_is_neither_compute_nor_forgotten(tmp_path):
    ticks = count(100.0)
    recorder = _recorder(tmp_path / "a", clock=lambda: next(ticks), heartbeat_interval_s=60)
    recorder.begin_step(1, "data")
    began_s = next(ticks)
    recorder.begin_work(64.0)
    assert read_board(tmp_path / "a").step_work == 64.0
    recorder.end_step(0.0)
    reading = read_board(tmp_path / "a")
    # Each look at the clock takes a second: one at the beginning, one where its phase was written.
    assert reading.data_s == (began_s + 1 - (began_s - 2),)
    assert reading.compute_s == (2.0,)
    assert reading.work == (64.0,)
    recorder.begin_step(2, "data")
    recorder.end_step(0.0)
    assert read_board(tmp_path / "a").work == (64.0, 0.0)
    recorder.close()


def test_an_exchange_of_another_thread_starts_later_than_it_is_asked_for(tmp_path, group):
    ticks = count(100.0)
    recorder = _recorder(tmp_path / "a", clock=lambda: next(ticks), heartbeat_interval_s=60)
    token = recorder.enqueue("replica", "all_gather", 8, group, started=False)
    (before,) = read_board(tmp_path / "a").pending
    assert before.started_s is None
    recorder.start(token)
    recorder.end(token)
    (after,) = read_board(tmp_path / "a").recent
    assert after.enqueued_s < after.started_s < after.ended_s
    recorder.close()


def test_the_heartbeat_goes_on_while_the_rank_waits_and_ends_with_it(tmp_path, group):
    recorder = _recorder(tmp_path / "a", heartbeat_interval_s=0.01)
    with recorder.collective("replica", "all_reduce", 8, group):
        first = read_board(tmp_path / "a")
        assert len(first.pending) == 1
        deadline_s = time.monotonic() + 10
        while read_board(tmp_path / "a").heartbeat_s == first.heartbeat_s:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
    recorder.close()
    last_s = read_board(tmp_path / "a").heartbeat_s
    time.sleep(0.05)
    assert read_board(tmp_path / "a").heartbeat_s == last_s


def test_communicators_beyond_the_room_are_counted_as_unrecorded(tmp_path, group):
    recorder = _recorder(tmp_path / "a", sizes=Sizes(communicators=2))
    ledger = Ledger(recorder=recorder)
    for axis in ("one", "two", "three", "three"):
        with ledger.collective(axis, "all_reduce", 8, group):
            pass
    reading = read_board(tmp_path / "a")
    assert len(reading.last_sequence) == len(reading.recent) == 2
    assert reading.unrecorded == 2
    assert ledger.take()[0] == {"one/all_reduce": 8, "two/all_reduce": 8, "three/all_reduce": 16}
    recorder.close()


def test_a_message_from_rank_to_rank_is_numbered_apart(tmp_path, group):
    recorder = _recorder(tmp_path / "a")
    ledger = Ledger(recorder=recorder)
    token = ledger.begin("pp", "send", 8, group, link=(0, 0))
    ledger.ended(token)
    ledger.ended(ledger.begin("pp", "all_reduce", 8, group))
    reading = read_board(tmp_path / "a")
    line, whole = (record.communicator for record in reading.recent)
    assert line == f"{whole}/0>0"
    assert reading.last_sequence == {line: 1, whole: 1}
    recorder.close()
