"""Only whole checkpoints are loaded, by any number of ranks, into the model they are of."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from comms.groups import side_group
from tests.ranks import run_on_ranks
from tests.trainer.checkpoint.worlds import corrupt, spread, whole_state, zeros_like
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.loading import choose_loadable, load, read_tensors
from trainer.checkpoint.resume import find_checkpoints
from trainer.checkpoint.share import local_part
from trainer.errors import DataError, ExitCode, RecipeError

WORLDS = [
    (1, "plain"),
    (1, "rows"),
    (2, "plain"),
    (2, "rows"),
    (3, "rows"),
    (3, "columns"),
    (4, "rows"),
    (4, "hybrid"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    saver = Checkpointer(tmp_path / "checkpoints", keep_last=9, group=None, blocking=True)
    for step in (1, 2, 3):
        saver.save(step, whole_state(step), {"step": step})
    saver.close()
    return tmp_path


def _data_file(step_folder: Path) -> Path:
    (path,) = step_folder.glob("*.safetensors")
    return path


def _load(run: Path) -> tuple[int, list[str]]:
    state = zeros_like(whole_state(0))
    loaded = load(state, find_checkpoints(run), None)
    whole = whole_state(loaded.step)
    assert all(torch.equal(state[name], whole[name]) for name in whole)
    assert loaded.meta == {"step": loaded.step}
    return loaded.step, [reason for _, reason in loaded.skipped]


def test_takes_the_newest(run: Path) -> None:
    assert _load(run) == (3, [])


def test_a_damaged_file_is_named_and_the_one_before_taken(run: Path) -> None:
    corrupt(_data_file(find_checkpoints(run)[0]))
    step, (reason,) = _load(run)
    assert step == 2
    assert "shard-00000-of-00001.safetensors is damaged" in reason


def test_every_kind_of_damage_is_passed_over(run: Path) -> None:
    newest, second, _ = find_checkpoints(run)
    _data_file(newest).unlink()
    corrupt(second / "manifest.json")
    step, reasons = _load(run)
    assert step == 1
    assert "No such file" in reasons[0]
    assert "manifest.json is damaged" in reasons[1]


def test_a_cut_file_is_passed_over(run: Path) -> None:
    path = _data_file(find_checkpoints(run)[0])
    path.write_bytes(path.read_bytes()[:-1])
    step, (reason,) = _load(run)
    assert step == 2
    assert "bytes instead of" in reason


def test_no_bit_of_a_file_can_change_unseen(run: Path) -> None:
    (newest, *_), state = find_checkpoints(run), zeros_like(whole_state(0))
    path = _data_file(newest)
    content = path.read_bytes()
    for position in range(0, len(content), 37):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 8]) + content[position + 1 :]
        )
        with pytest.raises(DataError, match="is damaged"):
            load(state, [newest], None)
    assert all(torch.equal(state[name], zero) for name, zero in zeros_like(state).items())


def test_when_nothing_can_be_loaded_all_reasons_are_listed(run: Path) -> None:
    for path in find_checkpoints(run):
        corrupt(_data_file(path))
    with pytest.raises(
        DataError, match=r"(?s)step-00000003.*step-00000002.*step-00000001"
    ) as error:
        _load(run)
    assert str(error.value).count("is damaged") == 3
    assert error.value.exit_code == ExitCode.DATA
    with pytest.raises(DataError, match="there is none"):
        choose_loadable((), None)


def _other(change: dict[str, Tensor | None]) -> dict[str, Tensor]:
    state = {**zeros_like(whole_state(0)), **change}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.new": torch.ones(2)}, r"1 of 12 tensors are not in it: model\.new"),
        ({"model.bias": None}, r"1 of its tensors are not in the model: model\.bias"),
        (
            {"model.bias": torch.ones(4)},
            r"model\.bias is F32\[3\] in the checkpoint and F32\[4\] here",
        ),
        ({"model.bias": torch.ones(3).half()}, r"model\.bias is F32\[3\] .* and F16\[3\] here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_before_anything_changes(
    run: Path, change: dict[str, Tensor | None], message: str
) -> None:
    state = _other(change)
    before = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(RecipeError, match=message):
        load(state, find_checkpoints(run), None)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_many_differences_are_counted_not_listed(run: Path) -> None:
    change: dict[str, Tensor | None] = {f"new.{i}": torch.ones(1) for i in range(50)}
    with pytest.raises(RecipeError, match=r"50 of 61 .* new\.3 and 46 more"):
        load(_other(change), find_checkpoints(run), None)


def test_parameters_that_need_gradients_are_loaded_in_place(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, keep_last=1, group=None, blocking=True)
    saver.save(1, {"w": torch.nn.Parameter(torch.arange(4.0))}, {})
    saver.close()
    target = torch.nn.Parameter(torch.zeros(4))
    address = target.data_ptr()
    load({"w": target}, find_checkpoints(tmp_path), None)
    assert target.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert target.data_ptr() == address


def test_reading_tensors_of_a_broken_folder_is_a_data_error(run: Path) -> None:
    newest = find_checkpoints(run)[0]
    _data_file(newest).write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_tensors(newest))


def _load_on_two(rank: int, run: Path) -> None:
    group = side_group()
    newest, second, oldest = find_checkpoints(run)
    dist.barrier()
    if rank == 1:
        corrupt(_data_file(newest))
    dist.barrier()
    # Only rank 0's list counts, and only one of the ranks reads the only file.
    state = zeros_like(whole_state(0))
    loaded = load(state, [newest, second] if rank == 0 else [oldest], group)
    assert (loaded.step, loaded.path) == (2, second)
    assert [path for path, _ in loaded.skipped] == [newest]
    assert torch.equal(state["model.weight"], whole_state(2)["model.weight"])
    odd = {**state, **({"extra": torch.ones(1)} if rank == 1 else {})}
    with pytest.raises(RecipeError, match=r"another model: 1 of 12 .* extra"):
        load(odd, [oldest], group)


def test_ranks_agree_on_what_is_loaded_and_refused(run: Path) -> None:
    run_on_ranks(2, _load_on_two, run)
    assert _load(run)[0] == 2


def _meshes() -> dict[tuple[int, str], DeviceMesh]:
    flat = {n: DeviceMesh("cpu", list(range(n))) for n in (1, 2, 3, 4)}
    hybrid = DeviceMesh("cpu", torch.arange(4).view(2, 2))
    return {(n, kind): hybrid if kind == "hybrid" else flat[n] for n, kind in WORLDS}


def _save_and_load_everywhere(rank: int, directory: Path) -> None:
    meshes = _meshes()
    groups = {n: dist.new_group(list(range(n)), backend="gloo") for n in (1, 2, 3, 4)}
    expected = {step: whole_state(step) for step in range(len(WORLDS))}
    for step, (ranks, kind) in enumerate(WORLDS):
        if rank < ranks:
            saver = Checkpointer(directory, keep_last=99, group=groups[ranks], blocking=True)
            state = spread(expected[step], kind, meshes[ranks, kind])
            saver.save(step, state, {"saved_by": [ranks, kind]})
            assert [outcome.error for outcome in saver.wait()] == [None]
            saver.close()
    dist.barrier()
    for ranks, kind in WORLDS:
        if rank >= ranks:
            continue
        mesh = meshes[ranks, kind]
        for step, whole in expected.items():
            state = spread(zeros_like(whole), kind, mesh)
            loaded = load(state, [directory / f"step-{step:08d}"], groups[ranks])
            assert (loaded.step, loaded.skipped) == (step, ())
            assert loaded.meta == {"saved_by": list(WORLDS[step])}
            for name, tensor in spread(whole, kind, mesh).items():
                same = torch.equal(local_part(state[name]), local_part(tensor))
                assert same, f"{name}: {WORLDS[step]} -> {(ranks, kind)}"


@pytest.fixture(scope="module")
def saved_everywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    run_on_ranks(4, _save_and_load_everywhere, directory)
    return directory


@pytest.mark.parametrize("step", range(len(WORLDS)), ids=lambda step: f"{WORLDS[step]}")
def test_loads_on_all_worlds_and_in_a_process_without_a_group(
    saved_everywhere: Path, step: int
) -> None:
    whole = whole_state(step)
    state = zeros_like(whole)
    assert load(state, [saved_everywhere / f"step-{step:08d}"], None).step == step
    assert all(torch.equal(state[name], whole[name]) for name in whole)


@pytest.mark.parametrize("step", range(len(WORLDS)), ids=lambda step: f"{WORLDS[step]}")
def test_streams_whole_tensors(saved_everywhere: Path, step: int) -> None:
    whole = whole_state(step)
    found = dict(read_tensors(saved_everywhere / f"step-{step:08d}", "optim."))
    assert set(found) == {name for name in whole if name.startswith("optim.")}
    assert all(torch.equal(found[name], whole[name]) for name in found)
