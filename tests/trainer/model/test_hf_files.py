"""Folders that are damaged, do not fit, or must not be touched."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.errors import DataError, RecipeError, ResourceError
from trainer.model.config import Architecture, MoeConfig
from trainer.model.decoder import Decoder
from trainer.model.hf_files import write_tensors
from trainer.model.hf_weights import load_hf_weights, write_hf_folder
from trainer.model.init import init_weights

ARCHITECTURE = Architecture(vocab_size=64, hidden_size=16, num_layers=1, intermediate_size=24)
MOE = replace(
    ARCHITECTURE, moe=MoeConfig(num_experts=2, expert_intermediate_size=8, scoring="sigmoid")
)


def make_model(seed=0, architecture=ARCHITECTURE):
    model = Decoder(architecture)
    init_weights(model, seed)
    return model


def export(folder, tensors, architecture=ARCHITECTURE):
    write_hf_folder(
        folder,
        architecture,
        tensors,
        dtype=torch.float32,
        max_shard_bytes=10_000,
        tokenizer_folder=None,
    )


def single_file(folder):
    write_hf_folder(
        folder,
        ARCHITECTURE,
        make_model(1).state_dict(),
        dtype=torch.float32,
        max_shard_bytes=10**9,
        tokenizer_folder=None,
    )


@pytest.fixture
def copy(tmp_path):
    """A folder with a config and, not yet written, its tensors."""
    folder = tmp_path / "model"
    single_file(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return folder, tensors


def test_misfits_are_listed_and_nothing_is_loaded(copy):
    folder, tensors = copy
    tensors["model.layers.0.mlp.extra.weight"] = tensors.pop("model.norm.weight")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:50].clone()
    save_file(tensors, folder / "model.safetensors")
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(DataError) as caught:
        load_hf_weights(model, folder)
    for part in (
        "1 missing: model.norm.weight",
        "1 unexpected: model.layers.0.mlp.extra.weight",
        "lm_head.weight (50, 16) instead of (64, 16)",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_frequencies_of_old_checkpoints_are_ignored(copy):
    folder, tensors = copy
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")
    assert (
        load_hf_weights(make_model(), folder)
        == f"loaded {len(tensors) - 1} of {len(tensors)} tensors from {folder}"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "model.safetensors is missing"),
        ({"model.safetensors": b"garbage" * 9}, "not a readable safetensors file"),
        ({"model.safetensors.index.json": b"{}"}, "is not a safetensors index"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../b.safetensors"}}'},
            "not a file of its own folder",
        ),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "gone.safetensors"}}'},
            "gone.safetensors is missing",
        ),
    ],
)
def test_damaged_folders_are_named(copy, files, message):
    folder, _ = copy
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_hf_weights(make_model(), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "missing: norm.weight"),
        ({"extra.weight": torch.ones(1)}, "'extra.weight' is not of this architecture"),
        ({"norm.weight": torch.ones(3)}, r"the shape \(3,\) instead of \(16,\)"),
    ],
)
def test_an_export_of_wrong_tensors_leaves_nothing(change, message, tmp_path):
    changed = make_model().state_dict() | change
    tensors = {name: tensor for name, tensor in changed.items() if tensor is not None}
    with pytest.raises(DataError, match=message):
        export(tmp_path / "out", iter(tensors.items()))
    assert list(tmp_path.iterdir()) == []


def test_an_export_does_not_touch_a_folder_with_content(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(RecipeError, match="is not an empty folder"):
        export(tmp_path, make_model().state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_an_empty_folder_may_be_the_target_and_leftovers_do_not_matter(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "0.part").write_text("interrupted")
    model = make_model(2)
    export(tmp_path / "out", model.state_dict())
    again = make_model(0)
    load_hf_weights(again, tmp_path / "out")
    assert all(
        torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_architecture_without_a_family_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RecipeError, match=r"model\.moe\.scoring='sigmoid'"):
        export(tmp_path / "out", make_model(architecture=MOE).state_dict(), MOE)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing_is_a_lack_of_resources(tmp_path):
    with pytest.raises(ResourceError, match="gone cannot be written"):
        write_tensors(tmp_path / "gone", [("a", torch.ones(3))], 100)
