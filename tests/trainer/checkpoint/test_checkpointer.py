"""Saving beside training: a true copy, all ranks or none, earlier checkpoints untouched."""

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from comms.groups import side_group
from tests.ranks import run_on_ranks
from tests.trainer.checkpoint.worlds import spread, whole_state, zeros_like
from trainer.checkpoint.agreement import RanksFailed
from trainer.checkpoint.checkpointer import Checkpointer, SaveOutcome
from trainer.checkpoint.folder import list_complete, read_latest
from trainer.checkpoint.loading import load, read_tensors


def _saver(directory: Path, *, keep_last: int = 9, blocking: bool = False) -> Checkpointer:
    return Checkpointer(directory, keep_last=keep_last, group=None, blocking=blocking)


def _stored(directory: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    state = zeros_like(like)
    load(state, [list_complete(directory)[0][1]], None)
    return state


def _names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def test_saves_the_state_of_the_moment_of_the_call(tmp_path: Path) -> None:
    saver, state = _saver(tmp_path), {"w": torch.zeros(300_000)}
    for step in range(1, 4):
        state["w"].fill_(step)
        saver.save(step, state, {})
        state["w"].fill_(-1)
    saver.close()
    for step, path in list_complete(tmp_path):
        found = zeros_like(state)
        load(found, [path], None)
        assert bool((found["w"] == step).all())


def test_outcomes_are_reported_once_and_in_order(tmp_path: Path) -> None:
    saver, state = _saver(tmp_path), whole_state(0)
    assert saver.poll() == []
    saver.save(1, state, {})
    saver.save(2, state, {})
    outcomes = saver.wait()
    assert [outcome.step for outcome in outcomes] == [1, 2]
    assert saver.wait() == []
    saver.save(3, state, {})
    saver.close()
    assert [outcome.step for outcome in saver.poll()] == [3]
    assert saver.poll() == []
    for outcome in outcomes:
        assert outcome.error is None
        assert outcome.path.is_dir()
        data = [path.stat().st_size for path in outcome.path.glob("*.safetensors")]
        assert outcome.bytes == sum(data)
        assert 0 <= outcome.blocked_s <= outcome.seconds


def test_blocking_returns_when_all_is_on_disk(tmp_path: Path) -> None:
    saver = _saver(tmp_path, blocking=True)
    saver.save(1, whole_state(0), {})
    assert [step for step, _ in list_complete(tmp_path)] == [1]
    (outcome,) = saver.poll()
    assert outcome.blocked_s == outcome.seconds
    saver.close()


def test_keeps_the_last_and_points_at_the_newest(tmp_path: Path) -> None:
    saver = _saver(tmp_path / "checkpoints", keep_last=2)
    for step in (10, 20, 30, 40):
        saver.save(step, whole_state(step), {})
    saver.close()
    directory = tmp_path / "checkpoints"
    assert _names(directory) == {"step-00000030", "step-00000040", "latest"}
    assert read_latest(directory) == directory / "step-00000040"


def test_a_state_that_changes_its_form_is_planned_anew(tmp_path: Path) -> None:
    saver = _saver(tmp_path)
    saver.save(1, {"a": torch.ones(3)}, {})
    saver.save(2, {"a": torch.ones(5), "b": torch.ones(2)}, {})
    saver.close()
    found = _stored(tmp_path, {"a": torch.ones(5), "b": torch.ones(2)})
    assert found["a"].sum() == 5
    assert found["b"].sum() == 2


def test_meta_is_stored_as_it_was_and_must_be_json(tmp_path: Path) -> None:
    saver, meta = _saver(tmp_path), {"seed": 1, "rng": [1, 2], "loss": 0.1}
    saver.save(1, {"a": torch.ones(1)}, meta)
    meta["seed"] = 2
    saver.close()
    loaded = load({"a": torch.ones(1)}, [list_complete(tmp_path)[0][1]], None)
    assert loaded.meta == {"seed": 1, "rng": [1, 2], "loss": 0.1}
    with pytest.raises(TypeError, match="not JSON serializable"):
        saver.save(2, {"a": torch.ones(1)}, {"path": tmp_path})


def test_a_tensor_that_cannot_be_stored_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed, match=r"tensor odd has dtype torch\.complex64"):
        _saver(tmp_path).save(1, {"odd": torch.ones(1, dtype=torch.complex64)}, {})


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    saver = _saver(tmp_path / "file")
    saver.save(1, whole_state(0), {})
    (outcome,) = saver.wait()
    assert outcome.error is not None
    assert outcome.error.startswith("rank 0: ")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine does not allow mounts")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_costs_the_new_checkpoint_only(small_disk: Path) -> None:
    saver = _saver(small_disk)
    state = {"w": torch.ones(400_000)}
    for step in (1, 2, 3):
        saver.save(step, state, {})
    errors = [outcome.error for outcome in saver.wait()]
    assert errors[0] is None
    for error in errors[1:]:
        assert error is not None
        assert "No space left on device" in error
        assert "lower checkpoint.keep_last" in error
    assert _names(small_disk) == {"step-00000001", "latest"}
    assert torch.equal(_stored(small_disk, state)["w"], state["w"])
    saver.close()


def _limit_file_size(limit: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))


def _outcome(saver: Checkpointer) -> SaveOutcome:
    (outcome,) = saver.wait()
    return outcome


def _fail_and_recover(rank: int, directory: Path) -> None:
    mesh = DeviceMesh("cpu", list(range(3)))
    saver = Checkpointer(directory, keep_last=9, group=side_group(), blocking=False)
    state = {
        **spread(whole_state(1), "rows", mesh),
        **spread({"large": torch.ones(90_000)}, "rows", mesh),
    }
    saver.save(1, state, {"rank": rank})
    assert _outcome(saver).error is None
    if rank == 1:
        _limit_file_size(1000)
    saver.save(2, state, {})
    failed = _outcome(saver).error
    assert failed is not None
    assert failed.startswith("rank 1: ")
    assert "File too large" in failed
    dist.barrier()
    assert _names(directory) == {"step-00000001", "latest"}
    dist.barrier()
    _limit_file_size(resource.RLIM_INFINITY)
    saver.save(3, state, {"rank": rank})
    assert _outcome(saver).error is None
    saver.save(5 if rank == 2 else 4, state, {})
    astray = _outcome(saver).error
    assert astray is not None
    assert "rank 1: saving step 4, opening; rank 2: saving step 5, opening" in astray
    dist.barrier()
    assert _names(directory) == {"step-00000001", "step-00000003", "latest"}
    saver.close()


def test_a_save_fails_on_all_ranks_together_and_the_next_one_works(tmp_path: Path) -> None:
    run_on_ranks(3, _fail_and_recover, tmp_path)
    whole = {**whole_state(1), "large": torch.ones(90_000)}
    state = zeros_like(whole)
    loaded = load(state, [path for _, path in list_complete(tmp_path)], None)
    assert (loaded.step, loaded.meta) == (3, {"rank": 0})
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def _lose_a_rank(rank: int, directory: Path) -> None:
    saver = Checkpointer(directory, keep_last=9, group=side_group(), blocking=False)
    state = whole_state(1)
    saver.save(1, state, {})
    assert _outcome(saver).error is None
    if rank == 1:
        os._exit(0)
    saver.save(2, state, {})
    outcome = _outcome(saver)
    saver.close()
    (directory / "outcome.json").write_text(json.dumps([outcome.step, outcome.error]))


def test_a_lost_rank_ends_the_save(tmp_path: Path) -> None:
    run_on_ranks(2, _lose_a_rank, tmp_path)
    step, error = json.loads((tmp_path / "outcome.json").read_text())
    assert step == 2
    assert error.startswith("a rank was lost while saving")
    assert [step for step, _ in list_complete(tmp_path)] == [1]


def _train_and_save(rank: int, directory: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 1))
    fully_shard(model, mesh=DeviceMesh("cpu", list(range(3))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    saver = Checkpointer(directory, keep_last=9, group=side_group(), blocking=False)
    for step in (1, 2):
        model(torch.full((2, 5), float(step + rank))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        state: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            state[f"model.{name}"] = parameter
            for kind, value in optimizer.state[parameter].items():
                state[f"optim.{kind}.{name}"] = value
        expected = {name: full_tensor(tensor).clone() for name, tensor in state.items()}
        saver.save(step, state, {})
    saver.close()
    assert [outcome.error for outcome in saver.poll()] == [None, None]
    found = dict(read_tensors(list_complete(directory)[0][1]))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def full_tensor(tensor: Tensor) -> Tensor:
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor


def test_saves_fsdp2_and_adamw_over_ranks_that_do_not_divide_the_sizes(tmp_path: Path) -> None:
    run_on_ranks(3, _train_and_save, tmp_path)
    assert [step for step, _ in list_complete(tmp_path)] == [2, 1]
