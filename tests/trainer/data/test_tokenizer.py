import json
import multiprocessing

import numpy as np
import pytest

from trainer.data.bpe import END_OF_TEXT, train_bpe
from trainer.data.tokenizer import Tokenizer, prepare_tokenizer
from trainer.errors import DataError

TEXT = "the model trains,\n  then the loss falls <|endoftext|> äö"


def test_text_survives_and_special_tokens_in_it_stay_text(tokenizer):
    (tokens,) = tokenizer.encode_batch([TEXT])
    assert tokens.dtype == np.int64
    assert tokenizer.eos_id not in tokens
    assert tokenizer.decode(tokens) == TEXT
    (control,) = tokenizer.encode_control([TEXT])
    assert tokenizer.eos_id in control
    assert tokenizer.encode_batch([]) == []


def test_sizes_and_ids(tokenizer):
    assert tokenizer.vocab_size == 290
    assert tokenizer.eos_id == 0
    assert tokenizer.prefix_ids == ()
    assert tokenizer.special_ids == {0, 1, 2}


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    again = Tokenizer.load(tmp_path / "t")
    assert again.fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(tmp_path / "t" / "tokenizer.json").fingerprint == tokenizer.fingerprint
    assert again.chat_template == tokenizer.chat_template
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_fingerprint_is_of_the_tokens_that_templates_know_by_name():
    text = train_bpe(["a b c"], 320)
    found = {
        Tokenizer(text, eos_token=END_OF_TEXT, config=config).fingerprint
        for config in ({}, {"bos_token": "<|im_start|>"}, {"bos_token": "<|im_end|>"})
    }
    assert len(found) == 3


def test_transformers_reads_what_is_saved(tokenizer, tmp_path):
    # Imported here: it takes seconds, and spawned processes of this file would take them too.
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token == END_OF_TEXT
    plain = "the model trains,\n  then the loss falls äö"
    assert theirs(plain)["input_ids"] == tokenizer.encode_batch([plain])[0].tolist()
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "there"}]
    rendered = theirs.apply_chat_template(chat, tokenize=False)
    assert rendered == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nthere<|im_end|>\n")


def put(folder, files):
    engine = train_bpe(["a b c"], 320)
    (folder / "tokenizer.json").write_text(engine)
    for name, value in files.items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("files", "eos_id"),
    [
        ({"tokenizer_config.json": {"eos_token": "<|im_end|>"}}, 2),
        ({"tokenizer_config.json": {"eos_token": {"content": "<|im_start|>"}}}, 1),
        ({"special_tokens_map.json": {"eos_token": "<|im_end|>"}}, 2),
        ({"tokenizer_config.json": {}, "generation_config.json": {"eos_token_id": [2, 0]}}, 2),
        ({"config.json": {"eos_token_id": 1}}, 1),
        ({}, 0),
    ],
)
def test_the_end_token_is_found_where_models_keep_it(tmp_path, files, eos_id):
    assert Tokenizer.load(put(tmp_path, files)).eos_id == eos_id


def test_templates_are_found_where_models_keep_them(tmp_path):
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    put(tmp_path, {"tokenizer_config.json": {"chat_template": named}})
    assert Tokenizer.load(tmp_path).chat_template == "D"
    put(tmp_path, {"chat_template.jinja": "J"})
    assert Tokenizer.load(tmp_path).chat_template == "J"


def test_what_a_tokenizer_puts_in_front_is_kept(tmp_path):
    text = json.loads(train_bpe(["a b c"], 320))
    text["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
        },
    }
    tokenizer = Tokenizer(json.dumps(text), eos_token=END_OF_TEXT, config={})
    assert tokenizer.prefix_ids == (1,)
    assert 1 not in tokenizer.encode_batch(["a"])[0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, r"tokenizer\.json is not JSON"),
        ({"tokenizer.json": "[]"}, r"is a JSON list, not an object"),
        ({"tokenizer.json": "{}"}, r"is not a tokenizer: it has no 'model'"),
        ({"tokenizer_config.json": "?"}, r"tokenizer_config\.json is not JSON"),
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, r"'</s>' is not in its vocabulary"),
    ],
)
def test_damaged_folders_are_named(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        Tokenizer.load(put(tmp_path, files))


def test_missing_tokenizers_and_unknown_end_tokens_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer at .*nowhere; give a tokenizer\.json"):
        Tokenizer.load(tmp_path / "nowhere")
    text = json.loads(train_bpe(["a"], 320))
    text["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(DataError, match="does not say which token ends a document"):
        Tokenizer.load(tmp_path)


def test_auto_trains_once_and_keeps_it(text_source, data_config, monkeypatch):
    config = data_config(text_source, vocab_size=320)
    first = prepare_tokenizer(config, None)
    assert 259 < first.vocab_size <= 320
    monkeypatch.setattr("trainer.data.tokenizer.train_bpe", lambda *_: pytest.fail("again"))
    assert prepare_tokenizer(config, None).fingerprint == first.fingerprint


def test_what_decides_the_sample_decides_the_tokenizers_place(text_source, data_config):
    first = prepare_tokenizer(data_config(text_source), None)
    other = prepare_tokenizer(data_config(text_source, block_bytes=4000), None)
    fresh = data_config(text_source, block_bytes=4000, cache_dir=str(text_source / ".fresh"))
    assert prepare_tokenizer(fresh, None).fingerprint == other.fingerprint
    assert prepare_tokenizer(data_config(text_source), None).fingerprint == first.fingerprint


def prepare(config, results):
    results.put(prepare_tokenizer(config, None).fingerprint)


def test_several_processes_get_the_same_tokenizer(text_source, data_config):
    config = data_config(text_source, vocab_size=340)
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    processes = [context.Process(target=prepare, args=(config, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {results.get(timeout=200) for _ in processes}
    for process in processes:
        process.join()
    assert found == {prepare_tokenizer(config, None).fingerprint}


def test_a_named_tokenizer_or_the_models_is_taken(text_source, data_config, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "model")
    config = data_config(text_source)
    taken = prepare_tokenizer(config, str(tmp_path / "model"))
    assert taken.fingerprint == tokenizer.fingerprint
    named = data_config(text_source, tokenizer=str(tmp_path / "model"))
    assert prepare_tokenizer(named, None).fingerprint == tokenizer.fingerprint
    with pytest.raises(DataError, match="no tokenizer at"):
        prepare_tokenizer(config, str(tmp_path))
