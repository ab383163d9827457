import json

import pytest

from trainer.errors import RecipeError
from trainer.model.config import Architecture, ModelConfig, MoeConfig, RopeScaling
from trainer.model.resolve import resolve_architecture
from trainer.reads import ReadLog


def test_an_open_vocabulary_is_the_tokenizers_rounded_up():
    architecture = resolve_architecture(ModelConfig(hidden_size=64), 1025)
    assert architecture == Architecture(hidden_size=64, vocab_size=1088)
    assert resolve_architecture(ModelConfig(), 1024).vocab_size == 1024


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused():
    with pytest.raises(RecipeError, match=r"has 500 entries.*has 400"):
        resolve_architecture(ModelConfig(vocab_size=400), 500)


def test_a_watched_section_gives_a_plain_architecture():
    model = ModelConfig(
        moe=MoeConfig(num_experts=4), rope_scaling=RopeScaling(kind="linear", factor=2.0)
    )
    log = ReadLog()
    architecture = resolve_architecture(log.watch(model, "model."), 320)
    assert type(architecture) is Architecture
    assert type(architecture.moe) is MoeConfig
    assert architecture.rope_scaling == RopeScaling(kind="linear", factor=2.0)
    assert {"model.hidden_size", "model.moe.top_k", "model.rope_scaling.factor"} <= log.read


def test_what_the_kind_of_scaling_does_not_use_is_not_read():
    log = ReadLog()
    model = ModelConfig(rope_scaling=RopeScaling(kind="linear", factor=2.0, beta_fast=5.0))
    resolve_architecture(log.watch(model, "model."), 320)
    assert "model.rope_scaling.beta_fast" not in log.read


def test_with_a_path_only_the_path_is_read(tmp_path):
    config = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    log = ReadLog()
    model = log.watch(ModelConfig(path=str(tmp_path), hidden_size=8192), "model.")
    architecture = resolve_architecture(model, 500)
    assert (architecture.hidden_size, architecture.vocab_size) == (64, 512)
    assert log.read == {"model.path"}


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(kind="dynamic", factor=2.0, original_context_tokens=128),
        RopeScaling(kind="llama3", factor=8.0, low_freq_factor=2.0, high_freq_factor=5.0),
        RopeScaling(kind="yarn", factor=4.0, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5),
    ],
    ids=lambda scaling: scaling.kind,
)
def test_every_scaling_is_carried_over(scaling):
    assert resolve_architecture(ModelConfig(rope_scaling=scaling), 320).rope_scaling == scaling
