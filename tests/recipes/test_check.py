"""The figures of a recipe are those of the run: every bundled recipe is built without memory."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from recipes.bundled import bundled_recipes
from recipes.check import check, dry_build
from recipes.cli import main
from recipes.load import load_recipe
from recipes.wording import GIB
from trainer.errors import RecipeError
from trainer.model.hf_family import family_of

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


@pytest.fixture
def hf_folder(tmp_path):
    """A model folder without weights: all that checking needs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: position for position, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


@pytest.mark.parametrize("bundled", bundled_recipes(), ids=lambda b: b.name)
def test_every_bundled_recipe_is_built_with_the_parameters_that_were_counted(bundled, hf_folder):
    """And can be exported afterwards."""
    loaded = load_recipe(bundled.name)
    if loaded.recipe.model.path is not None:
        loaded = load_recipe(bundled.name, [f"model.path={hf_folder}"])
    report = check(loaded, device_memory_gib=80.0)
    assert dry_build(report.architecture) == report.parameters
    assert family_of(report.architecture)
    assert report.fits
    assert report.layout.world_size == loaded.recipe.cluster.num_workers


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("dense_fsdp_gpu", 0.95e9, 1.1e9), ("moe_multinode_gpu", 6.6e9, 6.8e9)],
)
def test_the_sizes_in_the_comments_are_right(name, low, high):
    assert low < check(load_recipe(name), device_memory_gib=80.0).parameters < high


def test_memory_is_split_over_shards_only():
    overrides = ["cluster.num_workers=4", "train.global_batch_tokens=8192"]
    whole = check(load_recipe("quickstart", [*overrides, "parallel.shard=1"]), device_memory_gib=1)
    half = check(load_recipe("quickstart", [*overrides, "parallel.shard=2"]), device_memory_gib=1)
    assert whole.state_bytes["weights"] == 4 * whole.parameters
    assert whole.state_bytes["optimizer"] == 8 * whole.parameters
    assert half.state_bytes["gradients"] == 2 * half.parameters
    assert (half.layout.replica, half.layout.shard) == (2, 2)


def test_what_does_not_fit_is_said_with_a_remedy():
    report = check(load_recipe("dense_fsdp_gpu"), device_memory_gib=1.0)
    assert not report.fits
    assert report.device_bytes == GIB
    assert "does not fit: raise parallel.shard" in dict(report.rows())["memory per rank"]


def test_axes_that_do_not_multiply_to_the_ranks_name_their_lines():
    loaded = load_recipe("quickstart", ["parallel.replica=3", "parallel.shard=1"])
    with pytest.raises(RecipeError) as caught:
        check(loaded, device_memory_gib=80.0)
    assert "= 3, but there are 2 ranks" in str(caught.value)
    assert "parallel.replica at command line" in str(caught.value)
    assert "quickstart.yaml:" in str(caught.value)


def test_the_batch_is_derived_and_explained(capsys):
    batch = ["data.seq_len=512", "train.global_batch_tokens=8192"]
    with pytest.raises(SystemExit) as ended:
        main(["check", "quickstart", "--no-build", "data.source=/no/such", *batch])
    out = " ".join(capsys.readouterr().out.split())
    assert not ended.value.code
    assert "8,192 tokens per step = 16 sequences × 512; 2 ranks × up to 4 sequences" in out
    assert "/no/such, which is not on this machine" in out


def test_islands_of_unequal_shares_are_told_apart(capsys):
    batch = ["data.seq_len=512", "train.global_batch_tokens=8192", "parallel.island=2"]
    with pytest.raises(SystemExit) as ended:
        main(["check", "quickstart", "--no-build", "comms.island.shares=[3, 1]", *batch])
    out = " ".join(capsys.readouterr().out.split())
    assert not ended.value.code
    assert "16 sequences × 512, 12 and 4 on the 2 islands; 1 ranks × up to 4" in out
    assert "→ 3 and 1 rounds" in out


def test_json_is_one_document_and_nothing_else(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", "debug_cpu", "--json"])
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert not ended.value.code
    assert err == ""
    assert report["built_parameters"] == report["parameters"]
    assert report["batch"]["rounds"] == 2
    assert set(report["state_bytes_per_rank"]) == {"weights", "gradients", "optimizer"}


def test_a_model_folder_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", "sft_chat", "model.path=/no/such/model"])
    assert ended.value.code in (2, 4)
    assert "/no/such/model" in capsys.readouterr().err
