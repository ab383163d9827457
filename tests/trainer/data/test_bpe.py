from tokenizers import Tokenizer

from trainer.data.bpe import SPECIAL_TOKENS, train_bpe

TEXTS = ["def train(model):\n    return model.loss  # äö 12345\n"] * 5 + ["the model trains " * 9]


def test_the_same_texts_give_the_same_tokenizer():
    assert train_bpe(TEXTS, 400) == train_bpe(iter(TEXTS), 400)


def test_the_vocabulary_has_every_byte_and_the_special_tokens_first():
    engine = Tokenizer.from_str(train_bpe([], 320))
    assert engine.get_vocab_size() == 256 + len(SPECIAL_TOKENS)
    assert [engine.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    assert Tokenizer.from_str(train_bpe(TEXTS, 290)).get_vocab_size() == 290


def test_text_survives_the_round_trip():
    engine = Tokenizer.from_str(train_bpe(TEXTS, 400))
    for text in (*TEXTS, "  leading\n\n\ttabs ", "\U0001f600 \u4e2d\u6587 e\u0301", "1234567"):
        assert engine.decode(engine.encode(text).ids) == text


def test_numbers_are_cut_to_three_digits():
    engine = Tokenizer.from_str(train_bpe(["123456 " * 50], 400))
    assert engine.encode("123456").tokens == ["123", "456"]
