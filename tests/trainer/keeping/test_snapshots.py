"""A snapshot is the state at its moment, whatever happens to the process that keeps it."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.disks import files_up_to
from tests.trainer.keeping.shares import keep, mixed_state, snapshots_of
from trainer.keeping.folder import check_share, list_shares, rank_folder
from trainer.keeping.header import ShareDamaged
from trainer.keeping.loose import Loose
from trainer.keeping.reading import OpenShare, description_of


def _kept(folder: Path, step: int) -> dict[str, torch.Tensor]:
    (found,) = [found for found in list_shares(folder) if found.header.step == step]
    share = OpenShare(found.path, check_share(found.path))
    return {name: share.block(name).clone() for name in mixed_state(0) if name != "nothing"}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_state_of_the_moment_is_kept(tmp_path):
    state = mixed_state(1)
    snapshots = snapshots_of(tmp_path, state)
    for step in (1, 2, 3):
        for name, tensor in mixed_state(step).items():
            state[name].copy_(tensor)
        snapshots.capture(step, state, {"step": step})
        assert snapshots.settle() >= 0.0
        for tensor in state.values():
            tensor.zero_()
    assert _equal(_kept(tmp_path, 3), mixed_state(3))
    assert _equal(_kept(tmp_path, 2), mixed_state(2))
    assert snapshots.settle() == 0.0
    snapshots.close()


def test_tensors_that_are_made_late_are_asked_for_on_the_thread(tmp_path):
    state = mixed_state(4)
    late = {name: state.pop(name) for name in ("large", "turned", "scalar")}
    snapshots = snapshots_of(tmp_path, {**state, **late})
    snapshots.capture(4, state, {"step": 4}, late=lambda: late)
    snapshots.settle()
    assert _equal(_kept(tmp_path, 4), mixed_state(4))
    snapshots.close()


def test_loose_tensors_come_and_go_and_grow(tmp_path):
    state = mixed_state(1)
    snapshots = snapshots_of(tmp_path, state)
    extra = {"more": torch.arange(100_000.0), "one": torch.tensor(3.0), "none": torch.empty(0, 3)}
    given = [None, extra, extra, None, {"more": extra["more"][:7]}]
    for step, tensors in enumerate(given, 1):
        loose = None
        if tensors is not None:
            marks = [tensor.data_ptr() for tensor in tensors.values()]
            loose = Loose(marks=(len(marks), *marks), tensors=lambda found=tensors: found)
        if step == 3:
            # The same memory with other values.
            extra["more"].add_(1)
        snapshots.capture(step, state, {"step": step, "text": "x" * 2000 * step}, loose=loose)
        assert loose is None or loose.kept.wait(10)
        snapshots.settle()
        assert snapshots.failure is None
        (found,) = [found for found in list_shares(tmp_path) if found.header.step == step]
        share = OpenShare(found.path, check_share(found.path))
        assert torch.equal(share.block("large"), state["large"])
        held = {block.name for block in description_of(found.path).stored} - set(state)
        assert held == {name for name, t in (tensors or {}).items() if t.numel()}
        for name in held:
            assert torch.equal(share.block(name), tensors[name])
    snapshots.close()


def test_a_snapshot_that_fails_stops_snapshots_and_nothing_else(tmp_path):
    def broken():
        raise OSError(5, "the device went away")

    state = mixed_state(1)
    snapshots = snapshots_of(tmp_path, state)
    snapshots.capture(1, state, {"step": 1})
    snapshots.settle()
    snapshots.capture(2, state, {"step": 2}, late=broken)
    snapshots.settle()
    assert snapshots.failure is not None
    assert "the device went away" in snapshots.failure
    snapshots.capture(3, state, {"step": 3})
    snapshots.close()
    assert [found.header.step for found in list_shares(tmp_path)] == [1]


def test_a_full_host_refuses_before_the_first_step(tmp_path):
    with files_up_to(100_000), pytest.raises(OSError, match="File too large"):
        snapshots_of(tmp_path, mixed_state(0))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_zombie_that_writes_on_is_noticed(tmp_path):
    keep(tmp_path, range(1, 3))
    (found,) = [found for found in list_shares(tmp_path) if found.header.step == 2]
    share = OpenShare(found.path, found.header)
    share.require_unchanged()
    with found.path.open("r+b") as file:
        file.write(b"BRAIDKP1\x05")
    with pytest.raises(ShareDamaged, match="was written to"):
        share.require_unchanged()


def _keep_for_ever(folder: Path, settled) -> None:
    torch.set_num_threads(1)
    states = [mixed_state(n) for n in range(4)]
    snapshots = snapshots_of(folder, states[0])
    step = 0
    while True:
        step += 1
        snapshots.capture(step, states[step % 4], {"step": step})
        snapshots.settle()
        settled.value = step


def test_a_process_killed_at_any_moment_leaves_its_last_step(tmp_path):
    context = multiprocessing.get_context("forkserver")
    chance = random.Random(5)
    for number in range(4):
        folder = tmp_path / str(number)
        settled = context.Value("q", 0, lock=False)
        process = context.Process(target=_keep_for_ever, args=(folder, settled), daemon=True)
        process.start()
        while settled.value < 2:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.02))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        steps = {found.header.step for found in list_shares(folder)}
        assert settled.value in steps
        assert steps <= {settled.value - 1, settled.value, settled.value + 1}
        for step in steps:
            assert _equal(_kept(folder, step), mixed_state(step % 4))
        assert len(list(rank_folder(folder, generation=1, rank=0, ranks=1).iterdir())) == 2
