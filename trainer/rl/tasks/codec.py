"""Tasks' texts as tokens of a model's tokenizer. Free of torch."""

from collections.abc import Sequence

from trainer.data.tokenizer import Tokenizer


class PlainCodec:
    """A `Codec` for models that continue a text: no chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """The text after the tokens the tokenizer begins with."""
        return (*self._tokenizer.prefix_ids, *self.encode(text))

    def encode(self, text: str) -> tuple[int, ...]:
        """The text alone; special tokens spelled out in it stay text."""
        return tuple(int(token) for token in self._tokenizer.encode_batch([text])[0])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text, without special tokens."""
        return self._tokenizer.decode(tokens)
