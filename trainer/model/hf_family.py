"""Which Hugging Face family an architecture belongs to, and its config.json. Pure."""

from typing import Any

from trainer.errors import RecipeError
from trainer.model.config import Architecture, MoeConfig, RopeScaling
from trainer.model.hf_config import FAMILIES, Family

_CLASSES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def family_of(architecture: Architecture) -> Family:
    """The family that expresses `architecture` exactly.

    Raises RecipeError naming the field that none of them can express.
    """
    if architecture.qkv_bias and architecture.qk_norm:
        raise _inexpressible("qkv_bias", True, "no family has it together with qk_norm=true")
    if architecture.moe is not None:
        return _moe_family(architecture, architecture.moe)
    if architecture.qkv_bias:
        return "qwen2"
    if architecture.qk_norm:
        return "qwen3"
    if architecture.sliding_window is None:
        return "llama"
    if architecture.sliding_window_from_layer:
        raise _inexpressible(
            "sliding_window_from_layer",
            architecture.sliding_window_from_layer,
            "it must be 0 without qkv_bias or qk_norm",
        )
    return "mistral"


def _moe_family(architecture: Architecture, moe: MoeConfig) -> Family:
    fixed = {
        "moe.scoring": (moe.scoring, "softmax"),
        "moe.shared_intermediate_size": (moe.shared_intermediate_size, 0),
        "moe.pyramid": (moe.pyramid, ()),
        "moe.residual": (moe.residual, False),
        "moe.dispatch_size": (moe.dispatch_size, 0),
        "moe.capacity_factor": (moe.capacity_factor, None),
        "moe.routed_scale": (moe.routed_scale, 1.0),
        "moe.bias_update_rate": (moe.bias_update_rate, 0.0),
        "qkv_bias": (architecture.qkv_bias, False),
    }
    if architecture.sliding_window is not None:
        fixed["sliding_window_from_layer"] = (architecture.sliding_window_from_layer, 0)
    if not architecture.qk_norm:
        fixed["moe.normalize_top_k"] = (moe.normalize_top_k, True)
        fixed["moe.first_dense_layers"] = (moe.first_dense_layers, 0)
        fixed["moe.every"] = (moe.every, 1)
    for name, (value, needed) in fixed.items():
        if value != needed:
            family = "qwen3_moe" if architecture.qk_norm else "mixtral"
            raise _inexpressible(name, value, f"the nearest family, {family}, needs {needed!r}")
    return "qwen3_moe" if architecture.qk_norm else "mixtral"


def _inexpressible(name: str, value: object, rule: str) -> RecipeError:
    return RecipeError(
        f"model.{name}={value!r} has no counterpart in the Hugging Face families "
        f"{', '.join(FAMILIES)}: {rule}. The run's own checkpoints keep it"
    )


def hf_config(architecture: Architecture, family: Family) -> dict[str, Any]:
    """The content of config.json, readable by versions 4 and 5 of transformers."""
    a = architecture
    config: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "num_hidden_layers": a.num_layers,
        "num_attention_heads": a.num_heads,
        "num_key_value_heads": a.num_kv_heads,
        "head_dim": a.resolved_head_dim,
        "intermediate_size": a.intermediate_size,
        "hidden_act": "silu",
        "max_position_embeddings": a.max_context_tokens,
        "rms_norm_eps": a.rms_norm_eps,
        "rope_theta": a.rope_theta,
        "rope_scaling": None if a.rope_scaling is None else _rope_scaling(a.rope_scaling),
        "tie_word_embeddings": a.tie_embeddings,
        "initializer_range": a.init_std,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if a.rope_scaling is not None and a.rope_scaling.kind == "dynamic":
        config["max_position_embeddings"] = a.rope_scaling.original_context_tokens
    if family == "llama":
        config["mlp_bias"] = False
    if family not in ("qwen2", "mistral", "mixtral"):
        config["attention_bias"] = False
    config.update(_window(a, family))
    if a.moe is not None:
        config.update(_experts(a, a.moe, family))
    return config


def _rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = scaling.original_context_tokens
    if scaling.kind == "llama3":
        values["low_freq_factor"] = scaling.low_freq_factor
        values["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        values["beta_fast"] = scaling.beta_fast
        values["beta_slow"] = scaling.beta_slow
        if scaling.attention_factor is not None:
            values["attention_factor"] = scaling.attention_factor
    return values


def _window(a: Architecture, family: Family) -> dict[str, Any]:
    if family == "llama":
        return {}
    if family in ("mistral", "mixtral"):
        return {"sliding_window": a.sliding_window}
    windowed = a.sliding_window is not None
    values: dict[str, Any] = {"use_sliding_window": windowed, "sliding_window": a.sliding_window}
    if family != "qwen3_moe":
        values["max_window_layers"] = a.sliding_window_from_layer if windowed else a.num_layers
    return values


def _experts(a: Architecture, moe: MoeConfig, family: Family) -> dict[str, Any]:
    values: dict[str, Any] = {
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.aux_loss_weight,
        "output_router_logits": False,
    }
    if family == "mixtral":
        return values | {
            "num_local_experts": moe.num_experts,
            "intermediate_size": moe.expert_intermediate_size,
        }
    return values | {
        "num_experts": moe.num_experts,
        "moe_intermediate_size": moe.expert_intermediate_size,
        "norm_topk_prob": moe.normalize_top_k,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in range(a.num_layers) if not a.is_moe_layer(i)],
    }
