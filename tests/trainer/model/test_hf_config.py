import json
from dataclasses import replace

import pytest

from trainer.errors import RecipeError
from trainer.model.config import Architecture, MoeConfig, RopeScaling
from trainer.model.hf_config import read_architecture
from trainer.model.hf_family import family_of, hf_config

PLAIN = Architecture(vocab_size=512, hidden_size=64, num_layers=4, init_std=0.03, head_dim=24)
WINDOWED = replace(PLAIN, sliding_window=16)
EXPERTS = MoeConfig(num_experts=6, top_k=3, expert_intermediate_size=40)

EXPRESSIBLE = {
    "llama": PLAIN,
    "llama-tied": replace(PLAIN, tie_embeddings=True, num_kv_heads=2),
    "qwen2": replace(PLAIN, qkv_bias=True),
    "qwen2-window": replace(WINDOWED, qkv_bias=True, sliding_window_from_layer=2),
    "qwen3": replace(WINDOWED, qk_norm=True, sliding_window_from_layer=3),
    "mistral": WINDOWED,
    "mixtral": replace(WINDOWED, moe=EXPERTS, intermediate_size=40),
    "qwen3_moe": replace(
        PLAIN, qk_norm=True, moe=replace(EXPERTS, normalize_top_k=False, first_dense_layers=1)
    ),
    "qwen3_moe-sparse": replace(
        WINDOWED, qk_norm=True, moe=replace(EXPERTS, first_dense_layers=1, every=2)
    ),
}
SCALINGS = [
    RopeScaling(kind="linear", factor=2.0, original_context_tokens=4096),
    RopeScaling(kind="llama3", factor=8.0, original_context_tokens=64, high_freq_factor=3.0),
    RopeScaling(kind="yarn", factor=4.0, original_context_tokens=32, beta_fast=16.0),
    RopeScaling(kind="yarn", factor=4.0, original_context_tokens=32, attention_factor=1.25),
    RopeScaling(kind="dynamic", factor=4.0, original_context_tokens=1024),
]


def read(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return read_architecture(folder)


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_every_family_comes_back_as_it_was_written(name, tmp_path):
    architecture = EXPRESSIBLE[name]
    family = family_of(architecture)
    assert family == name.split("-")[0]
    assert read(tmp_path, hf_config(architecture, family)) == architecture


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.kind)
def test_every_scaling_comes_back_as_it_was_written(scaling, tmp_path):
    architecture = replace(PLAIN, rope_scaling=scaling, max_context_tokens=4096)
    assert read(tmp_path, hf_config(architecture, "llama")) == architecture


@pytest.mark.parametrize(
    ("architecture", "field"),
    [
        (replace(PLAIN, qkv_bias=True, qk_norm=True), "qkv_bias"),
        (replace(WINDOWED, sliding_window_from_layer=2), "sliding_window_from_layer"),
        (replace(PLAIN, moe=replace(EXPERTS, scoring="sigmoid")), "moe.scoring"),
        (replace(PLAIN, moe=replace(EXPERTS, routed_scale=2.5)), "moe.routed_scale"),
        (replace(PLAIN, moe=replace(EXPERTS, bias_update_rate=0.1)), "moe.bias_update_rate"),
        (replace(PLAIN, moe=replace(EXPERTS, first_dense_layers=1)), "moe.first_dense_layers"),
        (replace(PLAIN, moe=replace(EXPERTS, normalize_top_k=False)), "moe.normalize_top_k"),
        (
            replace(PLAIN, qk_norm=True, moe=replace(EXPERTS, shared_intermediate_size=8)),
            "moe.shared_intermediate_size",
        ),
        (replace(PLAIN, qkv_bias=True, moe=EXPERTS), "qkv_bias"),
    ],
)
def test_what_no_family_expresses_is_refused_by_name(architecture, field):
    with pytest.raises(RecipeError, match=rf"model\.{field}="):
        family_of(architecture)


LLAMA = hf_config(PLAIN, "llama")
QWEN3 = hf_config(replace(PLAIN, qk_norm=True), "qwen3")
QWEN3_MOE = hf_config(EXPRESSIBLE["qwen3_moe"], "qwen3_moe")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"model_type": "gpt2"}, "model_type='gpt2' is not supported"),
        (LLAMA | {"attention_bias": True}, "attention_bias=True"),
        (LLAMA | {"mlp_bias": True}, "mlp_bias=True"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (LLAMA | {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config="),
        (LLAMA | {"rope_scaling": {"rope_type": "longrope"}}, "rope_type='longrope'"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn"}}, "needs a 'factor'"),
        (
            LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            "truncate=False",
        ),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (LLAMA | {"hidden_size": None}, "no 'hidden_size'"),
        (LLAMA | {"num_key_value_heads": 3}, "num_kv_heads=3 does not divide"),
        (
            QWEN3
            | {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention"] + ["full_attention"] * 3,
            },
            "layer_types=",
        ),
        (QWEN3_MOE | {"mlp_only_layers": [1]}, "mlp_only_layers="),
    ],
)
def test_what_a_decoder_cannot_express_is_refused_by_name(config, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, config)


def test_a_folder_without_a_readable_config(tmp_path):
    with pytest.raises(RecipeError, match="does not exist"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RecipeError, match="cannot be read as JSON"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(RecipeError, match="must hold a JSON object"):
        read_architecture(tmp_path)


def test_settings_of_either_version_mean_the_same(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    old = {k: v for k, v in LLAMA.items() if k != "head_dim"}
    old |= {"rope_theta": 5e5, "rope_scaling": scaling, "head_dim": None}
    new = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_scaling")}
    new |= {"rope_parameters": scaling | {"rope_theta": 5e5}}
    assert read(tmp_path, old) == read(tmp_path, new)
    oldest = old | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    assert read(tmp_path, oldest).rope_scaling.kind == "linear"


def test_a_window_that_is_switched_off_or_reaches_no_layer_is_none(tmp_path):
    off = QWEN3 | {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2}
    beyond = QWEN3 | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 28}
    assert read(tmp_path, off).sliding_window is None
    assert read(tmp_path, beyond).sliding_window is None


def test_layers_with_experts_are_found_from_either_entry(tmp_path):
    moe = read(tmp_path, QWEN3_MOE | {"mlp_only_layers": [], "decoder_sparse_step": 2}).moe
    assert (moe.first_dense_layers, moe.every) == (1, 2)
    none = QWEN3_MOE | {"mlp_only_layers": [0, 1, 2, 3]}
    assert read(tmp_path, none).moe is None
