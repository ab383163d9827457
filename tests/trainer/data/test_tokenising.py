import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from trainer.data.bpe import END_OF_TEXT, train_bpe
from trainer.data.cache import claim
from trainer.data.corpus import Corpus
from trainer.data.order import block_order
from trainer.data.store import RowTable, TokenStore
from trainer.data.tokenising import Filler
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError


def write_lines(path, values):
    path.write_text("\n".join(json.dumps({"text": v}) for v in values))
    return path


def fill(config, tokenizer):
    corpus = Corpus.open(config, tokenizer, background=False)
    Filler(corpus.assignment).fill(lambda: True)
    return Corpus.open(config, tokenizer, background=False)


def test_blocks_are_done_in_the_order_of_the_first_epoch(
    text_source, data_config, tokenizer, monkeypatch
):
    corpus = Corpus.open(data_config(text_source), tokenizer, background=False)
    order = []
    write = RowTable.write
    monkeypatch.setattr(
        RowTable, "write", lambda self, b, **entry: (order.append(b), write(self, b, **entry))
    )
    Filler(dataclasses.replace(corpus.assignment, seed=9)).fill(lambda: True)
    assert corpus.num_blocks > 5
    assert order == block_order(corpus.num_blocks, seed=9, epoch=0).tolist()


def test_it_stops_between_blocks_when_asked_and_goes_on_later(text_source, data_config, tokenizer):
    config = data_config(text_source)
    corpus = Corpus.open(config, tokenizer, background=False)
    answers = iter([True, True, True, False, False])
    Filler(corpus.assignment).fill(lambda: next(answers, False))
    assert Corpus.open(config, tokenizer, background=False).num_ready == 2
    assert fill(config, tokenizer).complete


def test_tokens_are_reused_at_another_sequence_length(
    text_source, data_config, tokenizer, monkeypatch
):
    fill(data_config(text_source), tokenizer)
    monkeypatch.setattr(TokenStore, "write", lambda *_, **__: pytest.fail("tokenised again"))
    longer = fill(data_config(text_source, seq_len=64), tokenizer)
    assert longer.complete


def test_a_block_that_another_process_claims_is_left_alone(text_source, data_config, tokenizer):
    config = data_config(text_source)
    corpus = Corpus.open(config, tokenizer, background=False)
    claims = Path(corpus.assignment.store) / "claims"
    claims.mkdir()
    with claim(claims / "0"):
        rounds = iter(range(corpus.num_blocks + 5))
        Filler(corpus.assignment).fill(lambda: next(rounds, None) is not None)
        assert Corpus.open(config, tokenizer, background=False).rows[0] == -1
    assert fill(config, tokenizer).complete


def test_a_bad_line_stops_or_is_counted(tmp_path, data_config, tokenizer, caplog):
    path = write_lines(tmp_path / "a.jsonl", ["the model", 5, "the loss", None, "a step"])
    with pytest.raises(DataError, match=r"a\.jsonl:2 has int where text should be; correct it, or"):
        fill(data_config(path), tokenizer)
    corpus = fill(data_config(path, on_bad="skip"), tokenizer)
    assert corpus.skipped == 2
    assert "a.jsonl:2 has int where text should be" in caplog.text
    assert "a.jsonl:4 has NoneType" in caplog.text
    assert sum(len(corpus.block(b).lengths_D) for b in range(corpus.num_blocks)) == 3


def test_a_document_longer_than_a_sequence_stops_or_is_counted(tmp_path, data_config, tokenizer):
    path = write_lines(tmp_path / "a.jsonl", ["a step", "the model " * 40, "the loss"])
    with pytest.raises(
        DataError, match=r"a\.jsonl:2 has \d+ tokens, more than data\.seq_len=32; raise it, set"
    ):
        fill(data_config(path, packing="whole"), tokenizer)
    skipping = fill(data_config(path, packing="whole", on_bad="skip"), tokenizer)
    assert skipping.skipped == 1
    assert fill(data_config(path), tokenizer).skipped == 0


def test_documents_over_the_byte_limit_are_counted(tmp_path, data_config, tokenizer):
    path = write_lines(tmp_path / "a.jsonl", ["a step", "the model " * 40, 7])
    config = data_config(path, on_bad="skip", max_document_bytes=60)
    assert fill(config, tokenizer).skipped == 2


def test_a_source_that_changed_since_is_refused(text_source, data_config, tokenizer):
    corpus = Corpus.open(data_config(text_source), tokenizer, background=False)
    (text_source / "003.txt").write_text("other")
    with pytest.raises(DataError, match="changed while the run started"):
        Filler(corpus.assignment)


def test_large_vocabularies_take_wider_tokens(text_source, data_config, tokenizer):
    narrow = fill(data_config(text_source), tokenizer)
    assert narrow.block(0).tokens.dtype == np.uint16
    words = json.loads(train_bpe(["the model"], 320))
    words["model"]["vocab"]["far"] = 70_000
    far = Tokenizer(json.dumps(words), eos_token=END_OF_TEXT, config={})
    wide = fill(data_config(text_source), far)
    assert wide.block(0).tokens.dtype == np.uint32
