"""The guarantees of comms/telemetry/board.py and reading.py, one by one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from comms.telemetry import layout
from comms.telemetry.board import Board
from comms.telemetry.layout import AWAITED, ENDED, STARTED, Sizes, compact_ranks, spread_ranks
from comms.telemetry.reading import BoardError, read_board
from comms.telemetry.records import RankReading

SIZES = Sizes(slots=8, communicators=4, names=4, steps=3)


def _board(path: Path) -> Board:
    board = Board.create(path, rank=3, pid=77, sizes=SIZES)
    for number, name in enumerate(("all_reduce", "backward")):
        assert board.set_name(number, name)
    assert board.set_communicator(0, "shard/5", "0:3:1")
    return board


def _put(board: Board, sequence: int, *, ended: bool = True, started: bool = True) -> int:
    token = board.put(0, sequence, 0, 100 * sequence, 1, sequence, started)
    if ended:
        board.stamp(token, ENDED, sequence + 0.5)
    return token


def _sequences(reading: RankReading) -> tuple[list[int], list[int]]:
    return [r.sequence for r in reading.recent], [r.sequence for r in reading.pending]


def test_what_is_written_is_read(tmp_path):
    board = _board(tmp_path / "rank")
    token = _put(board, 1, ended=False, started=False)
    board.stamp(token, STARTED, 1.25)
    board.stamp(token, AWAITED, 1.5)
    _put(board, 2)
    board.beat(9.0)
    for step in range(1, 6):
        board.set_state(generation=2, phase=1, step=step, round_=1, since_s=8.0, work=7.0)
        board.add_step(
            step, ended_s=step, compute_s=0.1 * step, waited_s=0.01, data_s=0.02, work=10.0 * step
        )
    found = read_board(tmp_path / "rank")
    assert (found.rank, found.pid, found.generation) == (3, 77, 2)
    assert (found.phase, found.phase_since_s, found.step, found.round) == ("backward", 8.0, 5, 1)
    assert found.heartbeat_s == 9.0
    assert found.last_sequence == {"shard/5": 2}
    assert found.members == {"shard/5": (0, 1, 2, 3)}
    (pending,), (ended,) = found.pending, found.recent
    assert (pending.communicator, pending.sequence, pending.sent_bytes) == ("shard/5", 1, 100)
    assert (pending.kind, pending.phase) == ("all_reduce", "backward")
    times = pending.enqueued_s, pending.started_s, pending.awaited_s, pending.ended_s
    assert times == (1.0, 1.25, 1.5, None)
    assert (ended.sequence, ended.ended_s, ended.awaited_s) == (2, 2.5, None)
    assert found.steps == (3, 4, 5)
    assert found.step_ended_s == (3.0, 4.0, 5.0)
    assert found.compute_s == pytest.approx((0.3, 0.4, 0.5))
    board.close()
    assert read_board(tmp_path / "rank") == found


def test_the_ring_keeps_the_newest_and_what_has_not_ended(tmp_path):
    board = _board(tmp_path / "rank")
    hanging = _put(board, 1, ended=False)
    for sequence in range(2, 30):
        _put(board, sequence)
    recent, pending = _sequences(read_board(tmp_path / "rank"))
    assert pending == [1]
    assert recent == list(range(23, 30))
    board.stamp(hanging, ENDED, 40.0)
    for sequence in range(30, 40):
        _put(board, sequence)
    # The slot has been taken since: what is said about it too late changes nothing.
    board.stamp(hanging, AWAITED, 41.0)
    reading = read_board(tmp_path / "rank")
    assert _sequences(reading) == (list(range(32, 40)), [])
    assert all(record.awaited_s is None for record in reading.recent)
    board.close()


def test_collectives_that_never_end_give_way_in_the_end(tmp_path):
    board = _board(tmp_path / "rank")
    for sequence in range(1, 20):
        _put(board, sequence, ended=False)
    assert len(_sequences(read_board(tmp_path / "rank"))[1]) == SIZES.slots
    board.close()


def test_torn_records_are_dropped_wherever_the_writer_was_cut_off(tmp_path):
    path = tmp_path / "rank"
    board = _board(path)
    for sequence in range(1, 9):
        _put(board, sequence)
    board.set_state(generation=0, phase=1, step=1, round_=0, since_s=1.0, work=0.0)
    board.set_state(generation=0, phase=1, step=2, round_=0, since_s=2.0, work=0.0)
    board.close()
    whole = path.read_bytes()
    slot = next(
        n
        for n in range(SIZES.slots)
        if layout.ENTRY.unpack_from(whole, SIZES.entries + n * layout.ENTRY_STRIDE)[1] == 5
    )
    at = SIZES.entries + slot * layout.ENTRY_STRIDE
    other = layout.sealed(layout.ENTRY.pack(99, 98, 97, 96.0, 0, 1, 0))
    for cut in range(1, len(other)):
        path.write_bytes(whole[:at] + other[:cut] + whole[at + cut :])
        recent, _ = _sequences(read_board(path))
        assert recent == [1, 2, 3, 4, 6, 7, 8], cut
    # Of the state there are two copies: the one before is still there.
    newest = SIZES.state
    for cut in range(1, layout.STATE.size):
        path.write_bytes(whole[:newest] + bytes(cut) + whole[newest + cut :])
        assert read_board(path).step == 1, cut


def test_a_reader_of_a_busy_writer_sees_only_what_was_written(tmp_path):
    path = tmp_path / "rank"
    child = _writer(path)
    try:
        seen = set()
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends or len(seen) <= 100:
            for record in read_board(path).recent:
                assert record.sent_bytes == 3 * record.sequence
                assert record.enqueued_s == 7 * record.sequence
                assert record.ended_s == 7 * record.sequence + 1
                seen.add(record.sequence)
    finally:
        child.kill()
        child.wait()


def test_a_stopped_and_a_killed_process_stay_readable(tmp_path):
    path = tmp_path / "rank"
    child = _writer(path)
    try:
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        first, again = read_board(path), read_board(path)
        assert first == again
        assert first.pid == child.pid
        assert first.last_sequence["shard/5"] > 0
    finally:
        child.kill()
        child.wait()
    assert read_board(path) == first


def _writer(path: Path) -> "subprocess.Popen[bytes]":
    script = f"""
import os
from pathlib import Path
from comms.telemetry.board import Board
from comms.telemetry.layout import ENDED, Sizes
board = Board.create(Path({str(path)!r}), rank=0, pid=os.getpid(), sizes=Sizes(slots=64))
board.set_communicator(0, "shard/5", "0:1:1")
sequence = 0
while True:
    sequence += 1
    token = board.put(0, sequence, 0, 3 * sequence, 0, 7.0 * sequence, True)
    board.stamp(token, ENDED, 7.0 * sequence + 1)
    if sequence == 1000:
        print("ready", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout as lines:
        assert lines.readline() == b"ready\n"
    return child


def test_what_is_no_board_is_refused_by_name(tmp_path):
    path = tmp_path / "rank"
    _board(path).close()
    whole = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        read_board(tmp_path / "absent")
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(BoardError, match="it is no board of a rank"):
        read_board(path)
    path.write_bytes(b"")
    with pytest.raises(BoardError, match="it is no board of a rank"):
        read_board(path)
    path.write_bytes(whole[:30])
    with pytest.raises(BoardError, match=r"header of .* is not whole"):
        read_board(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(BoardError, match="it was cut off"):
        read_board(path)
    header = layout.HEADER.pack(layout.MAGIC, 9, *layout.HEADER.unpack_from(whole)[2:])
    path.write_bytes(layout.sealed(header) + whole[layout.HEADER.size + 4 :])
    with pytest.raises(BoardError, match="is of version 9, this code reads version 2"):
        read_board(path)


def test_the_file_is_private_and_takes_its_room_at_once(tmp_path):
    _board(tmp_path / "rank").close()
    found = (tmp_path / "rank").stat()
    assert found.st_mode & 0o777 == 0o600
    assert found.st_size == SIZES.total_bytes
    assert found.st_blocks * 512 >= SIZES.total_bytes
    assert [p.name for p in tmp_path.iterdir()] == ["rank"]
    with pytest.raises(OSError, match="No such file"):
        Board.create(tmp_path / "absent" / "rank", rank=0, pid=1)


def test_names_without_room_are_refused_and_long_rank_lists_left_out(tmp_path):
    board = _board(tmp_path / "rank")
    assert not board.set_name(4, "fifth")
    assert not board.set_name(1, "x" * 100)
    assert not board.set_communicator(1, "x" * 1000, "0:0:1")
    assert board.set_communicator(1, "ep/7", ",".join(f"{n}:{n}:1" for n in range(0, 999, 2)))
    assert read_board(tmp_path / "rank").members["ep/7"] == ()
    board.close()


def test_forgetting_drops_collectives_and_communicators_alone(tmp_path):
    board = _board(tmp_path / "rank")
    _put(board, 1)
    board.add_step(1, ended_s=1.0, compute_s=0.5, waited_s=0.0, data_s=0.0, work=0.0)
    board.forget()
    reading = read_board(tmp_path / "rank")
    assert (reading.recent, reading.pending, reading.last_sequence) == ((), (), {})
    assert reading.steps == (1,)
    board.set_communicator(0, "shard/9", "0:1:1")
    _put(board, 1)
    assert read_board(tmp_path / "rank").last_sequence == {"shard/9": 1}
    board.close()


@pytest.mark.parametrize("ranks", [(0,), (0, 1, 2), (0, 2, 4, 7), (5, 3, 1), (0, 5, 6, 7), ()])
def test_ranks_are_written_in_short(ranks):
    assert spread_ranks(compact_ranks(ranks)) == ranks


def test_a_line_of_many_ranks_is_short():
    assert compact_ranks(range(3, 10_000, 8)) == "3:9995:8"


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="slots=0, but a board holds 1 to 65535"):
        Sizes(slots=0)
