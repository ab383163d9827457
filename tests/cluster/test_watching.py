"""What a driver does about what it sees of real processes from outside."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.agents import Agents
from cluster.host_agent import HostAgent, Target
from cluster.rank import RankSpec
from cluster.reading import Place
from cluster.rescuer import Charge
from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.watch import Watchdog
from cluster.watching import Watching, watched_ranks
from comms.config import RankEnvironment
from comms.telemetry.board import Board
from parallel.config import ParallelConfig
from trainer.config import JobConfig

HERE = "here"


class Clock:
    """Goes on by half a second with every look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.5
        return self.now_s


@pytest.fixture
def processes() -> Iterator[dict[int, "subprocess.Popen[bytes]"]]:
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    started = {rank: subprocess.Popen(words) for rank in range(2)}
    yield started
    for process in started.values():
        process.kill()
        process.wait()


def places(ranks: int) -> list[Place]:
    return [
        Place(
            rank=rank,
            node_id=HERE,
            host="a",
            address="127.0.0.1",
            local_rank=rank,
            local_world_size=ranks,
            device=0,
        )
        for rank in range(ranks)
    ]


def specs(folder: Path, ranks: int, parallel: ParallelConfig) -> dict[int, RankSpec]:
    return {
        rank: RankSpec(
            environment=RankEnvironment(
                rank=rank,
                world_size=ranks,
                local_rank=rank,
                local_world_size=ranks,
                host="a",
                master_address="127.0.0.1",
                master_port=1,
                device_type="cpu",
                threads=1,
            ),
            project="p",
            job=JobConfig(parallel=parallel),
            explicit={},
            memory_folder=str(folder),
        )
        for rank in range(ranks)
    }


def test_ranks_of_one_stage_do_the_same_work(tmp_path: Path) -> None:
    given = specs(tmp_path, 4, ParallelConfig(pp=2))
    ranks = watched_ranks(places(4), dict.fromkeys(range(4), 1), given)
    assert [rank.role for rank in ranks] == ["stage 0", "stage 0", "stage 1", "stage 1"]


def test_a_rank_that_was_ended_is_told_once_and_its_stacks_stay(
    processes: dict[int, "subprocess.Popen[bytes]"], tmp_path: Path, view: Any
) -> None:
    watching = Watching(
        Watchdog(WatchdogConfig()),
        Agents(HERE, Charge(run=str(tmp_path), memory=str(tmp_path), wait_s=0.0)),
        ranks=watched_ranks(
            places(2),
            {rank: process.pid for rank, process in processes.items()},
            specs(tmp_path, 2, ParallelConfig()),
        ),
        view=view,
        events=tmp_path / "events.jsonl",
        clock=Clock(),
    )
    os.kill(processes[1].pid, signal.SIGSTOP)
    found = []
    while not found:
        found = watching.poll()
    assert [(failure.rank, failure.kind) for failure in found] == [(1, "hung")]
    (stacks,) = tmp_path.glob("logs/stacks-step-*.txt")
    taken = stacks.stat().st_mtime_ns
    ended = psutil.Process(processes[1].pid)
    deadline_s = time.monotonic() + 10
    while ended.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert [watching.poll() for _ in range(5)] == [[]] * 5
    assert stacks.stat().st_mtime_ns == taken
    assert psutil.pid_exists(processes[0].pid)


def test_boards_of_earlier_starts_are_deleted(tmp_path: Path) -> None:
    agent = HostAgent()
    for generation in range(3):
        board = tmp_path / f"board-{generation}-0"
        Board.create(board, rank=0, pid=os.getpid()).close()
        target = Target(rank=0, host="a", process=os.getpid(), board=str(board))
        for _ in range(2):
            assert agent.observe([target])[0].reading is not None
        assert [path.name for path in tmp_path.iterdir()] == [board.name]
