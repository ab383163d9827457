import pytest

from trainer.data import sample
from trainer.data.documents import DocumentReader
from trainer.data.index import open_index
from trainer.data.sample import sample_texts
from trainer.errors import DataError


def sampled(config, *, kind="pretrain"):
    index = open_index(config)
    reader = DocumentReader(index, max_document_bytes=config.max_document_bytes)
    skip = config.on_bad == "skip"
    return sample_texts(reader, index.blocks.count, kind=kind, skip_bad=skip)


def test_small_data_is_taken_whole(text_source, data_config):
    texts = {path.read_text() for path in text_source.iterdir()} - {""}
    assert set(sampled(data_config(text_source))) == texts


def test_large_data_is_sampled_from_everywhere(text_source, data_config, monkeypatch):
    monkeypatch.setattr(sample, "SAMPLE_CHARACTERS", 2000)
    config = data_config(text_source)
    texts = sampled(config)
    assert texts == sampled(config)
    assert sum(map(len, texts)) < 4000
    everything = [path.read_text() for path in sorted(text_source.iterdir())]
    places = [next(i for i, whole in enumerate(everything) if whole.startswith(t)) for t in texts]
    assert min(places) < 10
    assert max(places) > 30


def test_conversations_are_sampled_by_their_messages(chat_source, data_config):
    texts = sampled(data_config(chat_source, kind="chat"), kind="chat")
    assert len(texts) == 40
    assert "role" not in " ".join(texts)


def test_bad_documents_stop_or_are_left_out(tmp_path, data_config):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nbad\n{"text": 5}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2 is not JSON .*; correct it, or set data\.on"):
        sampled(data_config(path))
    assert sampled(data_config(path, on_bad="skip")) == ["good"]
    path.write_text("bad\n")
    with pytest.raises(DataError, match="no usable document"):
        sampled(data_config(path, on_bad="skip"))
