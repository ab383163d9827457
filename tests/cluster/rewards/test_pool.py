"""Reward functions that fail in every way, beside requests that must not notice."""

import os
import sys
import time
from pathlib import Path

import pytest

from cluster.rewards.pool import RewardPool
from tests.cluster.rewards.confined import NEEDS_CONFINEMENT
from trainer.errors import RecipeError
from trainer.rl.rewards.config import RewardConfig
from trainer.rl.rewards.outcome import FaultKind, RewardRequest

pytestmark = NEEDS_CONFINEMENT
MODULE = """
import os, socket, sys, time

class Odd(Exception):
    pass

def score(prompt, completions, reference):
    print("printed, and no reply")
    if prompt == "raise":
        raise KeyError("missing")
    if prompt == "odd":
        raise Odd("strange")
    if prompt == "sleep":
        time.sleep(60)
    if prompt == "spin":
        while True:
            pass
    if prompt == "nan":
        return [float("nan")] * len(completions)
    if prompt == "count":
        return [1.0]
    if prompt == "none":
        return None
    if prompt == "memory":
        bytearray(8 << 30)
    if prompt == "exit":
        sys.exit("bye")
    if prompt == "crash":
        os.abort()
    if prompt == "network":
        socket.create_connection(("127.0.0.1", 9))
    if prompt == "pid":
        return [os.getpid()] * len(completions)
    return [float(completion == reference["answer"]) for completion in completions]

number = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards")
    (path / "own_rewards.py").write_text(MODULE)
    (path / "broken_rewards.py").write_text("import module_that_is_not_there")
    (path / "leaving_rewards.py").write_text("import sys; sys.exit(0)")
    return path


def pool(folder, **settings):
    given = {"function": "own_rewards:score", "time_limit_s": 20.0, "workers": 2}
    return RewardPool(RewardConfig(**(given | settings)), path=[str(folder), *sys.path])


@pytest.fixture(scope="module")
def shared(folder):
    with pool(folder, time_limit_s=2.0) as started:
        yield started


def ask(number, prompt="ok"):
    return RewardRequest(
        number=number, prompt=prompt, completions=["4", "5"], reference={"answer": "4"}
    )


FAULTS = {
    "raise": (FaultKind.RAISED, "KeyError: 'missing'"),
    "odd": (FaultKind.RAISED, "Odd: strange"),
    "sleep": (FaultKind.TIMEOUT, "longer than 2 s"),
    "spin": (FaultKind.TIMEOUT, "longer than 2 s"),
    "nan": (FaultKind.NOT_FINITE, "reward 0 is nan"),
    "count": (FaultKind.WRONG_COUNT, "1 rewards for 2 samples"),
    "none": (FaultKind.RAISED, "TypeError"),
    "memory": (FaultKind.MEMORY, "out of memory"),
    "exit": (FaultKind.EXITED, "bye"),
    "crash": (FaultKind.EXITED, "SIGABRT"),
    "network": (FaultKind.RAISED, "PermissionError"),
}


def test_every_fault_has_its_reason_and_harms_no_other_request(shared):
    requests = []
    for prompt in FAULTS:
        requests += [ask(len(requests), prompt), ask(len(requests) + 1)]
    results = shared.score(requests)
    assert [result.number for result in results] == [request.number for request in requests]
    for request, result in zip(requests, results, strict=True):
        if request.prompt == "ok":
            assert (result.rewards, result.fault) == ((1.0, 0.0), None)
            continue
        kind, says = FAULTS[request.prompt]
        assert result.rewards is None, request.prompt
        assert result.fault.kind is kind, result.fault
        assert says in result.fault.reason, result.fault


def test_results_can_be_taken_while_others_are_under_way(shared):
    shared.submit(ask(1, "sleep"))
    shared.submit(ask(2))
    assert shared.under_way == 2
    first = shared.poll(20.0)
    assert [result.number for result in first] == [2]
    with pytest.raises(ValueError, match="1 requests are under way"):
        shared.score([ask(3)])
    assert [result.number for result in shared.poll(20.0)] == [1]
    assert shared.poll(0.0) == []


def test_a_request_that_is_no_json_is_refused_at_once(shared):
    wrong = RewardRequest(number=1, prompt="", completions=[""], reference={"set": {1}})
    with pytest.raises(TypeError, match="set"):
        shared.submit(wrong)
    assert shared.under_way == 0


def test_a_worker_is_replaced_after_its_calls_and_all_end_with_the_pool(folder):
    with pool(folder, workers=1, calls_per_worker=2) as one:
        pids = [int(one.score([ask(i, "pid")])[0].rewards[0]) for i in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_worker_killed_while_idle_is_replaced(folder):
    with pool(folder, workers=1) as one:
        pid = int(one.score([ask(0, "pid")])[0].rewards[0])
        os.kill(pid, 9)
        while "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.01)
        first, second = one.score([ask(1), ask(2)])
    # The death may be noticed only by the request that was handed over.
    assert first.rewards == (1.0, 0.0) or first.fault.kind is FaultKind.MEMORY
    assert second.rewards == (1.0, 0.0)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("none_such:score", "cannot be imported .*No module named 'none_such'"),
        ("broken_rewards:score", "No module named 'module_that_is_not_there'"),
        ("own_rewards:other", "own_rewards has no function other"),
        ("own_rewards:number", "own_rewards has no function number"),
        ("leaving_rewards:score", "its worker ended at the start"),
    ],
)
def test_a_function_that_cannot_be_imported_is_an_error_at_the_start(folder, function, says):
    with pytest.raises(RecipeError, match=says):
        pool(folder, function=function, workers=1)
