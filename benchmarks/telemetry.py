"""What recording every collective costs.

    python benchmarks/telemetry.py [--recipe quickstart] [--rounds 9] [--steps 10] [--json]

First the time of one record, without a collective inside: what a recorder adds to a collective that
is waited for at once, and to one that is started and waited for later. Then two ranks train the
recipe, stretches of steps with a recorder and without taking turns; the share of a step is the
records that it makes, at the cost of one of them each, and its phases.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import Result, options
from two_ranks import on_two_ranks, opened_job, stepper, timed

from comms.ledger import Ledger
from comms.telemetry.board import Board
from comms.telemetry.reading import read_board
from comms.telemetry.recorder import HEARTBEAT_INTERVAL_S, Recorder
from trainer.config import JobConfig

RECORDS = 20_000


def at_once(ledger: Ledger, group: dist.ProcessGroup) -> None:
    """A collective that is waited for where it is called."""
    with ledger.collective("replica", "all_reduce", 1 << 20, group):
        pass


def later(ledger: Ledger, group: dist.ProcessGroup) -> None:
    """A collective that is started, and waited for some time after."""
    token = ledger.begin("replica", "all_reduce", 1 << 20, group)
    with ledger.waiting(token):
        pass


def marks(ledger: Ledger, group: dist.ProcessGroup) -> None:
    """What is recorded once per step, whatever it sends."""
    ledger.begin_step(1, "data")
    for phase in ("rounds", "vote", "update", "report", "save"):
        ledger.enter(phase)
    ledger.end_step()


BODIES = {"at once": at_once, "later": later, "marks": marks}


def each_us(body: Callable[[Ledger, dist.ProcessGroup], None], ledger: Ledger) -> float:
    """Microseconds of processor time of one call, which others on the machine do not lengthen."""
    group = dist.group.WORLD
    assert group is not None
    begin_s = time.thread_time()
    for _ in range(RECORDS):
        body(ledger, group)
    return (time.thread_time() - begin_s) / RECORDS * 1e6


def measure(rank: int, port: int, config: JobConfig, rounds: int, steps: int, out: str) -> None:
    """One rank: records alone, then stretches of steps; rank 0 writes what they took."""
    path = Path(config.run.dir) / f"board-{rank}"
    with opened_job(rank, port, config) as (job, _):
        recorder = Recorder(Board.create(path, rank=rank, pid=os.getpid()))
        found: dict[str, Any] = {name: [] for name in (*BODIES, "plain", "with", "off")}
        for _ in range(rounds):
            plain = Ledger()
            found["plain"].append(each_us(at_once, plain))
            for name, body in BODIES.items():
                extra_us = each_us(body, Ledger(recorder=recorder)) - each_us(body, plain)
                found[name].append(extra_us)
        step = stepper(job)
        timed(step, 3)
        for number in range(rounds):
            for name in ("with", "off") if number % 2 else ("off", "with"):
                job.ledger.recorder = recorder if name == "with" else None
                found[name].append(statistics.median(timed(step, steps)))
        before = sum(read_board(path).last_sequence.values())
        job.ledger.recorder = recorder
        timed(step, 1)
        found["records"] = sum(read_board(path).last_sequence.values()) - before
        recorder.close()
        if rank == 0:
            torch.save(found, out)


def run(recipe: str, *, rounds: int, steps: int) -> Result:
    """Measure and sum up."""
    found = on_two_ranks(measure, recipe, rounds, steps)
    result = Result(name="telemetry")
    step_us = statistics.median(found["off"]) * 1e6
    record_us = max(statistics.median(found[name]) for name in ("at once", "later"))
    marks_us = statistics.median(found["marks"])
    beats = step_us / 1e6 / HEARTBEAT_INTERVAL_S
    result.braid = {
        "record_at_once_us": statistics.median(found["at once"]),
        "record_later_us": statistics.median(found["later"]),
        "marks_of_a_step_us": marks_us,
        "count_alone_us": statistics.median(found["plain"]),
        "records_per_step": found["records"],
        "step_ms": step_us / 1e3,
        "heartbeats_per_step": beats,
        "share_of_step_percent": 100 * (found["records"] * record_us + marks_us) / step_us,
    }
    result.ratio("step with/without", found["with"], found["off"])
    return result


if __name__ == "__main__":
    given = options(__doc__, recipe="quickstart", steps=10, rounds=9)
    run(given.recipe, steps=given.steps, rounds=given.rounds).show(as_json=given.json)
