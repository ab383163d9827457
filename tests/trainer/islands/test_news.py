"""The guarantees of trainer/islands/news.py, one by one."""

import os
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from comms.ledger import Ledger
from comms.outer.link import IslandLostError
from comms.telemetry.board import Board
from comms.telemetry.reading import read_board
from comms.telemetry.recorder import Recorder
from tests.ranks import run_on_ranks
from trainer.islands.lag import LAG_STEPS
from trainer.islands.news import News, Newswire


def _news(step: int, **changes: float) -> News:
    fields = dict.fromkeys(("loss_sum", "aux_sum", "grad_norm", "skipped", "stop", "save"), 0.0)
    return News(**{**fields, "step": step, "targets": 8.0, **changes})


def _told(rank: int) -> dict:
    wire = Newswire(dist.new_group(backend="gloo"))
    asked, began_s = [], time.perf_counter()
    for step in range(1, 13):
        if rank == 1:
            # The others go on meanwhile, as far as they may be apart.
            time.sleep(0.01)
        asked.append(wire.asked(step))
        # One island's clock asks until a save was made; another asks to stop.
        wants = {"save": rank == 0 and step in (3, 4), "stop": rank == 1 and step == 8}
        wire.tell(_news(step, loss_sum=step + rank, **wants))
    heard = [[row.loss_sum for row in wire.hear(step)] for step in (11, 12)]
    wire.close()
    return {"asked": asked, "heard": heard, "seconds": time.perf_counter() - began_s}


def _lost(rank: int) -> str | None:
    wire = Newswire(dist.new_group(backend="gloo"))
    wire.tell(_news(1))
    wire.hear(1)
    if rank == 1:
        wire.close()
        dist.destroy_process_group()
        return None
    wire.tell(_news(2))
    with pytest.raises(IslandLostError, match="out of reach") as error:
        wire.hear(2)
    wire.close()
    return str(error.value)


def _apart(rank: int) -> str:
    wire = Newswire(dist.new_group(backend="gloo"))
    wire.tell(_news(1 + rank))
    with pytest.raises(RuntimeError, match=r"different steps: \[1, 2\]") as error:
        wire.hear(1 + rank)
    wire.close()
    return str(error.value)


def _watched(rank: int, folder: Path) -> list[bool]:
    """Whether open news is waited for, of rank 0: while it computes, and while it listens."""
    path = folder / f"rank-{rank}"
    recorder = Recorder(Board.create(path, rank=rank, pid=os.getpid()))
    wire = Newswire(dist.new_group(backend="gloo"), Ledger(recorder=recorder))
    other = folder / "rank-0"
    awaited = []
    if rank == 0:
        wire.tell(_news(1))
        awaited += [c.awaited_s is not None for c in read_board(path).pending]
    dist.barrier()
    if rank == 1:
        until_s = time.perf_counter() + 30
        while not all(c.awaited_s for c in read_board(other).pending):
            assert time.perf_counter() < until_s
            time.sleep(0.005)
        awaited += [c.awaited_s is not None for c in read_board(other).pending]
        wire.tell(_news(1))
    wire.hear(1)
    wire.close()
    assert not read_board(path).pending
    recorder.close()
    return awaited


def test_an_island_is_seen_to_wait_only_while_it_listens(tmp_path):
    assert run_on_ranks(2, _watched, tmp_path) == [[False], [True]]


def test_all_islands_hear_the_same_at_the_same_step():
    first, second = run_on_ranks(2, _told)
    assert first["asked"] == second["asked"]
    assert first["heard"] == second["heard"] == [[11.0, 12.0], [12.0, 13.0]]
    stops = [step for step, (stop, _) in enumerate(first["asked"], 1) if stop]
    saves = [step for step, (_, save) in enumerate(first["asked"], 1) if save]
    assert stops == [8 + LAG_STEPS]
    assert saves == [3 + LAG_STEPS]


def test_an_island_out_of_reach_is_an_error_of_its_own():
    assert run_on_ranks(2, _lost)[0] == "an island is out of reach"


def test_islands_at_different_steps_find_out():
    assert len(set(run_on_ranks(2, _apart))) == 1
