"""Processes that sample: messages go there and back, losses are noticed, seats are filled again."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.preflight import Node, living_nodes
from cluster.rl.reserve import Place
from cluster.rl.rollout_worker import RolloutSpec
from cluster.rl.rollouts import Happened, Rollouts
from cluster.rl.seat import Seat
from trainer.config import JobConfig, RunConfig
from trainer.errors import ExitCode
from trainer.rl.messages import Answer, Answered, FromRollout
from trainer.run_folder import RunFolder

JOB = JobConfig()


def spec_of(seat: Seat, name: str, host: str) -> RolloutSpec:
    return RolloutSpec(
        name=name, seat=seat.index, host=host, job=JOB, device="cpu", threads=1, devices=()
    )


@contextmanager
def rollouts(folder: Path, work: str, seats: int = 2) -> Iterator[Rollouts]:
    group = placement_group([{"CPU": 0.1}] * seats)
    ray.get(group.ready())
    node: Node = living_nodes(ray.nodes())[0]
    made = Rollouts(
        seats=[Seat(index=n, bundle=n, cpus=0.1, gpus=0, memory_bytes=0) for n in range(seats)],
        find_place=lambda seat: Place(node, group, seat.bundle),
        spec_of=spec_of,
        folder=RunFolder.of(RunConfig(name="x", dir=str(folder))),
        work=f"tests.cluster.rl.payloads:{work}",
        start_limit_s=60.0,
    )
    try:
        with closing(made):
            yield made
    finally:
        remove_placement_group(group)


def until(made: Rollouts, enough: Callable[[Happened], bool]) -> Happened:
    """All that happened until then."""
    seen = Happened()
    deadline_s = time.monotonic() + 150
    while not enough(seen):
        assert time.monotonic() < deadline_s, seen
        refs = made.refs
        done = ray.wait(refs, num_returns=len(refs), timeout=0.1)[0] if refs else []
        new = made.look(done)
        seen.up += new.up
        seen.lost += new.lost
        seen.messages += new.messages
    return seen


def answered(seen: Happened) -> list[FromRollout]:
    return [message for _, messages in seen.messages for message in messages]


def test_messages_arrive_in_order_and_a_killed_process_is_replaced(
    local_cluster: None, tmp_path: Path
) -> None:
    with rollouts(tmp_path, "echo") as made:
        assert sorted(until(made, lambda s: len(s.up) == 2).up) == ["rollout-0", "rollout-1"]
        for number in range(20):
            made.send("rollout-0", [Answer(number=number, lease_id=number, kept=None)])
        found = answered(until(made, lambda s: len(answered(s)) == 20))
        assert [m.kept.payload["number"] for m in found if isinstance(m, Answered)] == [*range(20)]

        os.kill(made.process_of("rollout-0"), signal.SIGKILL)
        seen = until(made, lambda s: bool(s.up))
        assert [(one.name, one.exit_code) for one in seen.lost] == [
            ("rollout-0", ExitCode.INFRASTRUCTURE)
        ]
        assert "killed" in seen.lost[0].reason
        assert seen.up == ["rollout-0.1"]
        # To the one that is gone nothing is sent; its successor starts afresh.
        made.send("rollout-0", [Answer(number=99, lease_id=99, kept=None)])
        made.send("rollout-0.1", [Answer(number=7, lease_id=7, kept=None)])
        (message,) = answered(until(made, lambda s: bool(answered(s))))
        assert isinstance(message, Answered)
        assert message.kept.payload == {"by": "rollout-0.1", "number": 7}


def test_an_error_of_the_work_is_told_with_its_code(local_cluster: None, tmp_path: Path) -> None:
    with rollouts(tmp_path, "refuse", seats=1) as made:
        lost = until(made, lambda s: bool(s.lost)).lost[0]
    assert lost.exit_code is ExitCode.DATA
    assert "has no field prompt" in lost.reason
    log = tmp_path / "x" / "logs" / "rollout-0.log"
    assert "DataError" in log.read_text()
