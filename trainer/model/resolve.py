"""From the recipe's `model` section to an architecture without open ends."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from trainer.errors import RecipeError
from trainer.model.config import Architecture, ModelConfig, MoeConfig, RopeScaling
from trainer.model.hf_config import read_architecture

_VOCAB_MULTIPLE = 64
"""Rows are padded to it: matrix products are fastest at round sizes."""

_SCALING_FIELDS = {
    "linear": ("factor",),
    "dynamic": ("factor", "original_context_tokens"),
    "llama3": ("factor", "original_context_tokens", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_context_tokens", "beta_fast", "beta_slow", "attention_factor"),
}
"""What each kind of scaling depends on; the rest is left unread."""


def resolve_architecture(model: ModelConfig, tokenizer_vocab: int) -> Architecture:
    """The architecture of `model.path`, or the one written down, with its vocabulary settled.

    Only the fields in force are read: with `path`, none of the architecture's. Raises RecipeError
    where the tokenizer has more entries than the model.
    """
    architecture = _written(model) if model.path is None else read_architecture(Path(model.path))
    if not architecture.vocab_size:
        rounded = -(-tokenizer_vocab // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
        return replace(architecture, vocab_size=rounded)
    if tokenizer_vocab > architecture.vocab_size:
        raise RecipeError(
            f"the tokenizer has {tokenizer_vocab} entries, but the model's vocabulary has "
            f"{architecture.vocab_size}; use the model's own tokenizer (data.tokenizer=auto), or, "
            "without model.path, raise model.vocab_size or set it to 0"
        )
    return architecture


def _written(model: ModelConfig) -> Architecture:
    values = _values(model, [field.name for field in fields(Architecture)])
    scaling, moe = model.rope_scaling, model.moe
    if scaling is not None:
        names = _SCALING_FIELDS[scaling.kind]
        values["rope_scaling"] = RopeScaling(kind=scaling.kind, **_values(scaling, names))
    if moe is not None:
        values["moe"] = MoeConfig(**_values(moe, [field.name for field in fields(MoeConfig)]))
    return Architecture(**values)


def _values(section: Any, names: list[str] | tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(section, name) for name in names}
