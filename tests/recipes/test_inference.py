"""From a run folder to text, and to a Hugging Face folder."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers

from recipes.cli import main
from recipes.inference import continuation, load_model, open_run, whole_characters
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError, RecipeError
from trainer.model.config import Architecture, MoeConfig
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.run_folder import RunFolder

ARCHITECTURE = Architecture(
    vocab_size=320,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    qk_norm=True,
    max_context_tokens=64,
    moe=MoeConfig(num_experts=4, top_k=2, expert_intermediate_size=16),
)
STEPS = (3, 7)


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: position for position, letter in enumerate(alphabet)}
    tokenizer = RawTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def weights(step):
    model = Decoder(ARCHITECTURE)
    init_weights(model, step)
    return model.state_dict()


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """A run folder with checkpoints of two steps."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    folder.tokenizer.mkdir(parents=True)
    byte_tokenizer().save(str(folder.tokenizer / "tokenizer.json"))
    (folder.tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>"})
    )
    saver = Checkpointer(folder.checkpoints, keep_last=3, group=None, blocking=True)
    for step in STEPS:
        state = {f"model.{name}": tensor for name, tensor in weights(step).items()}
        state["optim.exp_avg.norm.weight"] = torch.zeros(32)
        saver.save(step, state, {"architecture": asdict(ARCHITECTURE)})
    assert [outcome.error for outcome in saver.wait()] == [None, None]
    saver.close()
    return folder.root


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(trained_run, tmp_path / "tiny")


def text_of(run, **changes):
    settings = {"max_new_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 1} | changes
    return "".join(continuation(open_run(str(run), None), "def ", **settings))


def test_the_newest_checkpoint_is_taken_or_the_one_asked_for(trained_run):
    assert open_run(str(trained_run), None).step == 7
    older = open_run(str(trained_run), 3)
    assert older.step == 3
    assert older.architecture == ARCHITECTURE
    model = load_model(older, torch.device("cpu"))
    for name, tensor in weights(3).items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run):
    (data,) = (run / "checkpoints" / "step-00000007").glob("*.safetensors")
    data.write_bytes(data.read_bytes()[:-1] + b"\x7f")
    assert open_run(str(run), None).step == 3


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [(5, RecipeError, "no checkpoint of step 5; it has steps 3, 7")],
)
def test_a_step_that_is_not_there(trained_run, step, error, message):
    with pytest.raises(error, match=message):
        open_run(str(trained_run), step)


def test_a_run_without_checkpoints_and_no_run_at_all(tmp_path):
    with pytest.raises(DataError, match="no complete checkpoint yet"):
        open_run(str(tmp_path), None)
    with pytest.raises(RecipeError, match="there is no run folder"):
        open_run(str(tmp_path / "none"), None)


def test_text_is_a_function_of_the_seed(trained_run):
    assert text_of(trained_run) == text_of(trained_run)
    assert text_of(trained_run) != text_of(trained_run, seed=2)
    assert text_of(trained_run, temperature=0.0) == text_of(trained_run, temperature=0.0, seed=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "--temperature must not be negative, got -1.0"),
        ({"top_p": 0.0}, r"--top-p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"--top-p must lie in \(0, 1\], got 1.5"),
    ],
)
def test_sampling_settings_out_of_range_are_refused(trained_run, changes, message):
    with pytest.raises(RecipeError, match=message):
        text_of(trained_run, **changes)


def test_characters_spread_over_tokens_come_whole(trained_run):
    tokenizer = Tokenizer.load(trained_run / "tokenizer")
    (tokens,) = tokenizer.encode_batch(["añ→b"])
    assert list(whole_characters(tokens.tolist()[:1], iter(tokens.tolist()), tokenizer)) == [
        "a",
        "ñ",
        "→",
        "b",
    ]


def test_generate_prints_prompt_and_text(trained_run, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(trained_run), "--prompt", "def ", "--max-new-tokens", "5"])
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("def ")


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_export_writes_config_weights_and_tokenizer(
    trained_run, tmp_path, capsys, dtype, torch_dtype
):
    to = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["export", str(trained_run), "--to", str(to), "--dtype", dtype, "--step", "3"])
    assert not ended.value.code
    assert "step 3 of" in capsys.readouterr().out
    assert json.loads((to / "config.json").read_text())["model_type"] == "qwen3_moe"
    assert (to / "tokenizer.json").is_file()
    tensors = load_file(to / "model.safetensors")
    expected = weights(3)["embed_tokens.weight"].to(torch_dtype)
    assert torch.equal(tensors["model.embed_tokens.weight"], expected)


def test_export_does_not_overwrite(trained_run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(trained_run), "--to", str(tmp_path)])
    assert ended.value.code == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "keep"
