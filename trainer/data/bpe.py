"""Train a byte-level BPE tokenizer (arXiv 1508.07909, on bytes as in GPT-2) on some texts."""

from collections.abc import Iterable

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

END_OF_TEXT = "<|endoftext|>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, MESSAGE_START, MESSAGE_END)

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""No token crosses these pieces: contractions, words with what stands before them, up to three
digits, punctuation, line breaks, other space."""


def byte_tokens() -> str:
    """The tokenizer of SPECIAL_TOKENS and every byte, as the text of a tokenizer.json."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *letters))}
    engine = Engine(models.BPE(vocab=vocabulary, merges=[]))
    engine.add_special_tokens(list(SPECIAL_TOKENS))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    return engine.to_str()


def train_bpe(texts: Iterable[str], vocab_size: int) -> str:
    """The tokenizer as the text of a tokenizer.json.

    Its size is `vocab_size`, or less where the texts have too few pairs to merge. Token 0 ends a
    document; the others of SPECIAL_TOKENS follow. The same texts give the same tokenizer.
    """
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return engine.to_str()
