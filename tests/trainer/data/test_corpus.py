import pytest

from trainer.data.config import DataConfig
from trainer.data.corpus import Corpus, packing_of
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError, ResourceError
from trainer.reads import ReadLog


def fingerprint(config, tokenizer):
    return Corpus.open(config, tokenizer, background=False).fingerprint


def test_the_fingerprint_is_of_what_decides_the_stream(text_source, data_config, tokenizer):
    base = fingerprint(data_config(text_source), tokenizer)
    assert fingerprint(data_config(text_source), tokenizer) == base
    others = {
        fingerprint(data_config(text_source, **{name: value}), tokenizer)
        for name, value in [
            ("seq_len", 64),
            ("packing", "whole"),
            ("shuffle_blocks", 3),
            ("block_bytes", 2000),
            ("on_bad", "skip"),
            ("max_document_bytes", 10**6),
        ]
    }
    assert len(others | {base}) == 7
    other = Tokenizer(tokenizer._text, eos_token="<|im_end|>", config={})
    assert fingerprint(data_config(text_source), other) != base
    (text_source / "007.txt").write_text("changed")
    assert fingerprint(data_config(text_source), tokenizer) != base


def test_the_fingerprint_does_not_depend_on_the_place(
    text_source, data_config, tokenizer, tmp_path
):
    base = fingerprint(data_config(text_source), tokenizer)
    moved = text_source.rename(tmp_path / "elsewhere")
    assert fingerprint(data_config(moved, cache_dir=str(tmp_path / "other")), tokenizer) == base


def test_relative_sources_and_home_folders_work(text_source, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = DataConfig(source="texts", cache_dir="~/kept", block_bytes=1500)
    corpus = Corpus.open(config, tokenizer, background=True)
    corpus.begin(3)
    corpus.wait_for(range(corpus.num_blocks))
    corpus.close()
    assert corpus.complete
    assert (tmp_path / "kept" / "tokens").is_dir()


def test_the_whole_flow_reads_every_key_that_can_matter(chat_source, data_config, tokenizer):
    log = ReadLog()
    config = log.watch(data_config(chat_source, kind="chat"), prefix="data.")
    Corpus.open(config, tokenizer, background=False)
    unread = {
        f"data.{name}" for name in ("text_field", "vocab_size", "tokenizer", "task_questions")
    }
    known = {f"data.{name}" for name in DataConfig.__dataclass_fields__}
    assert known - log.read == unread


def test_text_files_have_no_fields(text_source, data_config, tokenizer):
    log = ReadLog()
    config = log.watch(data_config(text_source), prefix="data.")
    Corpus.open(config, tokenizer, background=False)
    assert not {"data.text_field", "data.messages_field"} & log.read


def test_auto_packing_keeps_conversations_whole():
    assert packing_of(DataConfig(kind="chat")) == "whole"
    assert packing_of(DataConfig(kind="answers")) == "whole"
    assert packing_of(DataConfig()) == "split"
    assert packing_of(DataConfig(kind="chat", packing="split")) == "split"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [("nowhere", DataError, "does not exist"), ("texts", ResourceError, "cannot be written")],
)
def test_opening_fails_early(text_source, tokenizer, tmp_path, source, error, message):
    cache = tmp_path / "file"
    cache.write_text("")
    config = DataConfig(source=str(tmp_path / source), cache_dir=str(cache))
    with pytest.raises(error, match=message):
        Corpus.open(config, tokenizer, background=False)
