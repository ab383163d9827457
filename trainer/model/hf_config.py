"""Read the config.json of a Hugging Face folder, as versions 4 and 5 of transformers write it.

Nothing in it is executed. What a decoder of ours cannot express is refused by name.
"""

import json
from pathlib import Path
from typing import Any, Literal, cast, get_args

from trainer.errors import RecipeError
from trainer.model.config import Architecture, MoeConfig, RopeScaling

Family = Literal["llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe"]
FAMILIES: tuple[Family, ...] = get_args(Family)

Scaling = Literal["linear", "dynamic", "llama3", "yarn"]
_SCALINGS: tuple[Scaling, ...] = get_args(Scaling)

_REFUSED = {
    "quantization_config": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "attention_bias": False,
    "mlp_bias": False,
    "router_jitter_noise": 0.0,
}
"""Features without a counterpart here, each with the values under which it is absent."""


class _Fields:
    """A config.json whose missing and unsupported entries are named with the file."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values

    def required(self, name: str) -> Any:
        value = self._values.get(name)
        if value is None:
            raise RecipeError(f"{self._path} has no {name!r}; it is not a complete model folder")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default where it is missing or null."""
        value = self._values.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        return name in self._values

    def refuse(self, name: str, value: Any, supported: str) -> RecipeError:
        return RecipeError(f"{self._path}: {name}={value!r} is not supported; {supported}")


def read_family(folder: Path) -> Family:
    """The `model_type` of a folder's config.json. Raises RecipeError for an unknown one."""
    return _family(_load(folder))


def read_architecture(folder: Path) -> Architecture:
    """The architecture of a Hugging Face folder.

    Raises RecipeError where config.json is missing, not JSON, of another family, or asks for a
    feature that is not supported.
    """
    fields = _load(folder)
    family = _family(fields)
    _refuse_unsupported(fields)
    num_heads, num_layers = fields.required("num_attention_heads"), _num_layers(fields)
    window, from_layer = _window(fields, family, num_layers)
    scaling = _scaling(fields)
    max_context = fields.get("max_position_embeddings", 2048)
    if scaling is not None and scaling.kind == "dynamic":
        # There max_position_embeddings means the context before stretching.
        max_context = int(scaling.factor * max_context)
    try:
        return Architecture(
            vocab_size=fields.required("vocab_size"),
            hidden_size=fields.required("hidden_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=fields.get("num_key_value_heads", num_heads),
            head_dim=fields.get("head_dim", 128 if family == "qwen3" else 0),
            intermediate_size=fields.required("intermediate_size"),
            rope_theta=_rope_theta(fields, family),
            rope_scaling=scaling,
            max_context_tokens=max_context,
            rms_norm_eps=fields.get("rms_norm_eps", 1e-5 if family == "mixtral" else 1e-6),
            qkv_bias=family == "qwen2",
            qk_norm=family in ("qwen3", "qwen3_moe"),
            sliding_window=window,
            sliding_window_from_layer=from_layer,
            tie_embeddings=fields.get("tie_word_embeddings", False),
            moe=_moe(fields, family),
            init_std=fields.get("initializer_range", 0.02),
        )
    except ValueError as error:
        raise RecipeError(f"{folder / 'config.json'}: {error}") from error


def _load(folder: Path) -> _Fields:
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"{path} does not exist; model.path must be a Hugging Face model folder"
        ) from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return _Fields(path, values)


def _family(fields: _Fields) -> Family:
    name = fields.required("model_type")
    if name not in FAMILIES:
        raise fields.refuse("model_type", name, f"supported are {', '.join(FAMILIES)}")
    return cast(Family, name)


def _refuse_unsupported(fields: _Fields) -> None:
    for name, absent in _REFUSED.items():
        value = fields.get(name)
        if value is not None and value != absent:
            raise fields.refuse(name, value, f"it must be {absent!r} or missing")
    activation = fields.get("hidden_act", "silu")
    if activation != "silu":
        raise fields.refuse("hidden_act", activation, "it must be 'silu'")


def _num_layers(fields: _Fields) -> int:
    return int(fields.required("num_hidden_layers"))


def _window(fields: _Fields, family: Family, num_layers: int) -> tuple[int | None, int]:
    """Window and first windowed layer."""
    if family == "llama":
        return None, 0
    if family in ("mistral", "mixtral"):
        # A mistral config without the entry means 4096; null means none.
        missing = 4096 if family == "mistral" and not fields.has("sliding_window") else None
        return fields.get("sliding_window", missing), 0
    window = fields.get("sliding_window", 4096) if fields.get("use_sliding_window", False) else None
    if window is None or family == "qwen3_moe":
        return window, 0
    kinds = fields.get("layer_types")
    if kinds is None:
        from_layer = min(fields.get("max_window_layers", 28), num_layers)
    else:
        from_layer = (
            kinds.index("sliding_attention") if "sliding_attention" in kinds else num_layers
        )
        wanted = ["full_attention"] * from_layer + ["sliding_attention"] * (num_layers - from_layer)
        if kinds != wanted:
            raise fields.refuse(
                "layer_types", kinds, "full_attention layers must come first, sliding ones after"
            )
    return (window, from_layer) if from_layer < num_layers else (None, 0)


def _rope(fields: _Fields) -> dict[str, Any]:
    """Rotary settings: `rope_parameters` since version 5, `rope_scaling` before."""
    return {**fields.get("rope_scaling", {}), **fields.get("rope_parameters", {})}


def _rope_theta(fields: _Fields, family: Family) -> float:
    default = 1e6 if family == "mixtral" else 1e4
    return float(_rope(fields).get("rope_theta") or fields.get("rope_theta", default))


def _scaling(fields: _Fields) -> RopeScaling | None:
    rope = _rope(fields)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    partial = rope.get("partial_rotary_factor") or fields.get("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise fields.refuse("partial_rotary_factor", partial, "all channels must rotate (1.0)")
    if kind == "default":
        return None
    if kind not in _SCALINGS:
        raise fields.refuse("rope_type", kind, f"supported are {', '.join(_SCALINGS)}")
    for name, absent in (("truncate", True), ("mscale", None), ("mscale_all_dim", None)):
        if rope.get(name) not in (None, absent):
            raise fields.refuse(name, rope[name], f"it must be {absent!r} or missing")
    if rope.get("factor") is None:
        raise fields.refuse("rope_scaling", rope, "it needs a 'factor'")
    plain_context = fields.get("max_position_embeddings", 2048)
    original = rope.get("original_max_position_embeddings") or plain_context
    return RopeScaling(
        kind=cast(Scaling, kind),
        factor=float(rope["factor"]),
        original_context_tokens=plain_context if kind == "dynamic" else original,
        low_freq_factor=float(rope.get("low_freq_factor") or 1.0),
        high_freq_factor=float(rope.get("high_freq_factor") or 4.0),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        attention_factor=rope.get("attention_factor"),
    )


def _moe(fields: _Fields, family: Family) -> MoeConfig | None:
    if family not in ("mixtral", "qwen3_moe"):
        return None
    if family == "mixtral":
        width, first, every, normalize = fields.required("intermediate_size"), 0, 1, True
    else:
        pattern = _sparse_pattern(fields)
        if pattern is None:
            return None
        first, every = pattern
        width = fields.required("moe_intermediate_size")
        normalize = fields.get("norm_topk_prob", False)
    experts = fields.get("num_local_experts") or fields.required("num_experts")
    return MoeConfig(
        num_experts=experts,
        top_k=fields.get("num_experts_per_tok", 2 if family == "mixtral" else 8),
        expert_intermediate_size=width,
        normalize_top_k=normalize,
        aux_loss_weight=fields.get("router_aux_loss_coef", 0.001),
        first_dense_layers=first,
        every=every,
    )


def _sparse_pattern(fields: _Fields) -> tuple[int, int] | None:
    """First layer with experts and the distance between such layers; None without any."""
    dense, step = fields.get("mlp_only_layers", []), fields.get("decoder_sparse_step", 1)
    layers = range(_num_layers(fields))
    sparse = [i for i in layers if i not in dense and (i + 1) % step == 0]
    if not sparse or fields.get("num_local_experts", fields.get("num_experts", 1)) == 0:
        return None
    every = sparse[1] - sparse[0] if len(sparse) > 1 else len(layers)
    if sparse != list(range(sparse[0], len(layers), every)):
        raise fields.refuse(
            "mlp_only_layers", dense, "layers with experts must be evenly spaced up to the last"
        )
    return sparse[0], every
