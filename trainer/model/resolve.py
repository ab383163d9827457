"""From the recipe's `model` section to the architecture that is built."""

from dataclasses import fields, replace
from pathlib import Path

from trainer.errors import RecipeError
from trainer.model.config import Architecture, ModelConfig

_VOCABULARY_MULTIPLE = 64
"""Rows are padded to it: matrix products are fastest at round sizes."""


def resolve_architecture(model: ModelConfig, tokenizer_vocab: int) -> Architecture:
    """The architecture in `model.path`, or the one written down, with a vocabulary.

    Raises RecipeError where the tokenizer knows more tokens than the model has rows for.
    """
    if model.path is not None:
        from trainer.model.hf_config import read_architecture
        architecture = read_architecture(Path(model.path))
    else:
        # One by one, so that a watched section shows exactly what was read.
        architecture = Architecture(
            **{field.name: getattr(model, field.name) for field in fields(Architecture)}
        )
    if architecture.vocab_size == 0:
        rows = -(-tokenizer_vocab // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
        return replace(architecture, vocab_size=rows)
    if tokenizer_vocab > architecture.vocab_size:
        raise RecipeError(
            f"the tokenizer has {tokenizer_vocab} tokens and the model only "
            f"{architecture.vocab_size} embedding rows; set model.vocab_size=0, or use the "
            "tokenizer that belongs to the model"
        )
    return architecture
