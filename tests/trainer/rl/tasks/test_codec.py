"""A tokenizer as a codec."""

from trainer.data.bpe import END_OF_TEXT, train_bpe
from trainer.data.tokenizer import Tokenizer
from trainer.rl.tasks.codec import PlainCodec


def test_texts_become_tokens_and_tokens_texts():
    tokenizer = Tokenizer(train_bpe(["12+7=19\n"] * 9, 300), eos_token=END_OF_TEXT, config={})
    codec = PlainCodec(tokenizer)
    tokens = codec.encode("12+7=")
    assert codec.encode_prompt("12+7=") == (*tokenizer.prefix_ids, *tokens)
    assert codec.decode([*tokens, tokenizer.eos_id]) == "12+7="
    assert tokenizer.eos_id not in codec.encode(END_OF_TEXT)
