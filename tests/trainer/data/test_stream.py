import itertools
import json
import statistics
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trainer.data.batch import IGNORED
from trainer.data.config import DataConfig
from trainer.data.corpus import Corpus
from trainer.data.stream import TokenStream
from trainer.data.tokenising import Filler
from trainer.errors import DataError

CASES = list(itertools.product(["split", "whole", "single"], [8, 33], [1, 3, 100], [0, 11]))


@pytest.fixture(scope="module")
def small(tmp_path_factory, make_texts):
    """Short documents as JSON lines, and a cache that the tests of this file share."""
    folder = tmp_path_factory.mktemp("small")
    texts = make_texts(60, longest_words=30)
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return folder


def open_stream(folder, tokenizer, *, seed=0, per_step=3, name="a.jsonl", **values):
    values = {"block_bytes": 500, "shuffle_blocks": 3, "seq_len": 16} | values
    config = DataConfig(source=str(folder / name), cache_dir=str(folder / "cache"), **values)
    corpus = Corpus.open(config, tokenizer, background=False)
    Filler(corpus.assignment).fill(lambda: True)
    corpus = Corpus.open(config, tokenizer, background=False)
    return corpus, TokenStream(corpus, config, seed=seed, sequences_per_step=per_step)


def pairs_of(sequences):
    return Counter(
        (s.block, s.document, s.start + i)
        for sequence in sequences
        for s in sequence.segments
        for i in range(s.length)
    )


def all_pairs(corpus, *, longest=10**9):
    return Counter(
        (block, document, i)
        for block in range(corpus.num_blocks)
        for document, length in enumerate(corpus.block(block).lengths_D.tolist())
        if length <= longest
        for i in range(length)
    )


def rows_of_epoch(corpus, stream_of_one, epoch):
    total = int(corpus.rows.sum())
    return [stream_of_one.sequences(epoch * total + i)[0] for i in range(total)]


@pytest.mark.parametrize(("packing", "seq_len", "group", "seed"), CASES)
def test_each_pair_is_in_one_sequence_of_each_epoch(
    small, tokenizer, packing, seq_len, group, seed
):
    corpus, stream = open_stream(
        small,
        tokenizer,
        seed=seed,
        per_step=1,
        packing=packing,
        seq_len=seq_len,
        shuffle_blocks=group,
        on_bad="skip",
    )
    expected = all_pairs(corpus, longest=seq_len if packing == "whole" else 10**9)
    assert corpus.num_blocks > 4
    epochs = [rows_of_epoch(corpus, stream, epoch) for epoch in range(3)]
    assert all(pairs_of(rows) == expected for rows in epochs)
    assert set(expected.values()) == {1}
    assert all(0 < s.num_tokens <= seq_len for rows in epochs for s in rows)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("per_step", [1, 4, 7])
def test_any_number_of_ranks_sees_each_pair_once(small, tokenizer, world_size, per_step):
    corpus, _ = open_stream(small, tokenizer, seed=5)
    streams = [
        open_stream(small, tokenizer, seed=5, per_step=per_step)[1] for _ in range(world_size)
    ]
    total = int(corpus.rows.sum())
    # As many epochs as it takes for a step to end where an epoch does.
    epochs = per_step // np.gcd(total, per_step)
    seen = Counter()
    for step in range(total * epochs // per_step):
        for rank, stream in enumerate(streams):
            seen += pairs_of(stream.sequences(step)[rank::world_size])
    assert seen == Counter({pair: int(epochs) for pair in all_pairs(corpus)})


def test_epochs_and_seeds_differ_in_order_not_in_content(small, tokenizer):
    corpus, stream = open_stream(small, tokenizer, per_step=1)
    first, second = (rows_of_epoch(corpus, stream, epoch) for epoch in (0, 1))
    other = rows_of_epoch(corpus, open_stream(small, tokenizer, per_step=1, seed=1)[1], 0)
    assert pairs_of(first) == pairs_of(second) == pairs_of(other)
    for rows in (second, other):
        same_place = sum(a == b for a, b in zip(first, rows, strict=True))
        assert same_place < len(first) / 4


@pytest.mark.parametrize("packing", ["split", "whole"])
@pytest.mark.parametrize("start", [1, 9, 50, 200])
def test_going_on_at_a_step_equals_going_through(small, tokenizer, packing, start):
    settings = {"packing": packing, "seq_len": 64, "on_bad": "skip"}
    _, through = open_stream(small, tokenizer, **settings)
    steps = [through.sequences(step) for step in range(start + 5)]
    _, resumed = open_stream(small, tokenizer, **settings)
    assert [resumed.sequences(step) for step in range(start, start + 5)] == steps[start:]


def test_going_on_reads_only_the_blocks_of_its_step(small, tokenizer):
    corpus, stream = open_stream(small, tokenizer, shuffle_blocks=1, per_step=1)
    read = []
    held = corpus.block
    corpus.block = lambda number: (read.append(number), held(number))[1]
    stream.sequences(10**6)
    assert len(set(read)) == 1


def test_a_step_may_be_larger_than_an_epoch(small, tokenizer):
    corpus, stream = open_stream(small, tokenizer)
    total = int(corpus.rows.sum())
    _, large = open_stream(small, tokenizer, per_step=2 * total + 1)
    assert pairs_of(large.sequences(0)[: 2 * total]) == Counter(
        {pair: 2 for pair in all_pairs(corpus)}
    )
    assert large.epoch(1) == pytest.approx(2 + 1 / total)
    assert stream.epoch(0) == 0.0


def test_the_stream_is_the_same_while_blocks_become_ready(text_source, data_config, tokenizer):
    config = data_config(text_source)
    with_process = Corpus.open(config, tokenizer, background=True)
    growing = TokenStream(with_process, config, seed=4, sequences_per_step=4)
    early = [growing.sequences(step) for step in range(40)]
    tokens = [growing.batch(s).tokens_T for s in early]
    with_process.close()
    Filler(with_process.assignment).fill(lambda: True)
    complete = Corpus.open(config, tokenizer, background=True)
    stream = TokenStream(complete, config, seed=4, sequences_per_step=4)
    assert complete.tokenising_process_id is None
    assert [stream.sequences(step) for step in range(40)] == early
    for step, expected in enumerate(tokens):
        assert torch.equal(stream.batch(early[step]).tokens_T, expected)


def test_the_first_group_is_enough_to_start(text_source, data_config, tokenizer):
    config = data_config(text_source)
    corpus = Corpus.open(config, tokenizer, background=False)
    allowed = iter([True] * (2 + config.shuffle_blocks - 1))
    Filler(corpus.assignment).fill(lambda: next(allowed, False))
    stream = TokenStream(corpus, config, seed=0, sequences_per_step=2)
    assert len(stream.sequences(0)) == 2
    assert corpus.num_ready == config.shuffle_blocks
    assert stream.epoch(1) > 0


@pytest.mark.parametrize("packing", ["split", "whole"])
def test_a_label_is_the_next_token_of_the_same_document(small, tokenizer, packing):
    corpus, stream = open_stream(small, tokenizer, packing=packing, on_bad="skip", seq_len=48)
    for step in range(30):
        sequences = stream.sequences(step)
        batch = stream.batch(sequences)
        begin = 0
        segments = [s for sequence in sequences for s in [*sequence.segments, None]]
        expected_ends = list(batch.document_ends)
        for segment in segments:
            if segment is None:
                stop = -(-begin // 48) * 48
                assert (batch.labels_T[begin:stop] == IGNORED).all()
                assert (batch.tokens_T[begin:stop] == tokenizer.eos_id).all()
                assert batch.positions_T[begin:stop].tolist() == list(range(stop - begin))
                assert stop == begin or expected_ends.pop(0) == stop
                begin = stop
                continue
            end = begin + segment.length
            block = corpus.block(segment.block)
            at = int(block.offsets[segment.document]) + segment.start
            document = block.tokens[at : at + segment.length + 1].astype(np.int64)
            assert batch.tokens_T[begin:end].tolist() == document[:-1].tolist()
            assert batch.labels_T[begin:end].tolist() == document[1:].tolist()
            assert batch.positions_T[begin:end].tolist() == list(range(segment.length))
            assert expected_ends.pop(0) == end
            begin = end
        assert expected_ends == []
        assert batch.document_ends[-1] == batch.sequence_ends[-1] == len(batch.tokens_T)
        assert batch.sequence_ends == (48, 96, 144)
        assert batch.sequence_tokens == tuple(s.num_tokens for s in sequences)
        assert batch.num_targets == int((batch.labels_T != IGNORED).sum()) == batch.num_tokens


def test_the_tokens_of_an_epoch_are_the_texts(small, tokenizer, make_texts):
    corpus, stream = open_stream(small, tokenizer, packing="whole", seq_len=512, per_step=1)
    found = []
    for sequence in rows_of_epoch(corpus, stream, 0):
        batch = stream.batch([sequence])
        ends = batch.document_ends[: len(sequence.segments)]
        for begin, end in zip((0, *ends), ends, strict=False):
            assert int(batch.labels_T[end - 1]) == tokenizer.eos_id
            found.append(tokenizer.decode(batch.tokens_T[begin:end].tolist()))
    assert sorted(found) == sorted(text for text in make_texts(60, longest_words=30) if text)


def test_only_assistant_tokens_of_conversations_are_targets(tmp_path, tokenizer, make_chats):
    chats = make_chats(40)
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"messages": c}) + "\n" for c in chats))
    corpus, stream = open_stream(tmp_path, tokenizer, name="c.jsonl", kind="chat", seq_len=256)
    said = Counter()
    for sequence in rows_of_epoch(corpus, open_one(stream, corpus, 256), 0):
        batch = stream.batch([sequence])
        assert sequence.num_targets == int((batch.labels_T != IGNORED).sum())
        assert batch.sequence_targets == (sequence.num_targets,)
        labels = batch.labels_T.numpy()
        text = tokenizer.decode(labels[labels != IGNORED].tolist(), skip_special=False)
        said += Counter(text.split("<|im_end|>")[:-1])
    assert said == Counter(m["content"] for c in chats for m in c if m["role"] == "assistant")


def open_one(stream, corpus, seq_len):
    config = DataConfig(seq_len=seq_len, shuffle_blocks=3)
    return TokenStream(corpus, config, seed=0, sequences_per_step=1)


def test_parquet_and_json_lines_of_the_same_texts_give_the_same_pairs(
    tmp_path, tokenizer, make_texts
):
    texts = make_texts(50, longest_words=30)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=17)
    corpus, stream = open_stream(tmp_path, tokenizer, name="a.parquet", per_step=1)
    rows = rows_of_epoch(corpus, stream, 0)
    assert pairs_of(rows) == all_pairs(corpus)
    documents = [
        tokenizer.decode(block.tokens[a:b])
        for block in map(corpus.block, range(corpus.num_blocks))
        for a, b in itertools.pairwise(block.offsets.tolist())
    ]
    assert documents == [text for text in texts if text]


def test_no_sequences_are_one_of_padding(small, tokenizer):
    _, stream = open_stream(small, tokenizer)
    batch = stream.batch([])
    assert batch.tokens_T.tolist() == [tokenizer.eos_id] * 16
    assert batch.labels_T.tolist() == [IGNORED] * 16
    assert batch.positions_T.tolist() == list(range(16))
    assert batch.tokens_T.dtype == batch.labels_T.dtype == batch.positions_T.dtype == torch.int64
    assert (batch.document_ends, batch.sequence_ends) == ((16,), (16,))
    assert (batch.num_tokens, batch.num_targets) == (0, 0)


def test_data_without_a_usable_document_is_an_error(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\nbad\n')
    _, stream = open_stream(tmp_path, tokenizer, on_bad="skip")
    with pytest.raises(DataError, match=r"no document can be used: .*\(skipped: 1\)"):
        stream.sequences(0)


def test_a_batch_costs_little(tmp_path, tokenizer, make_texts):
    texts = make_texts(3000, longest_words=100)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    _, stream = open_stream(
        tmp_path, tokenizer, seq_len=512, per_step=16, block_bytes=200_000, shuffle_blocks=8
    )
    stream.batch(stream.sequences(0))
    took_s = []
    for step in range(1, 12):
        begin_s = time.process_time()
        stream.batch(stream.sequences(step))
        took_s.append(time.process_time() - begin_s)
    # 0.4 to 1 ms on an idle core; the bound leaves room for a busy machine.
    assert statistics.median(took_s) < 0.01


def test_streams_of_sequences_at_their_own_length_are_shared_out_without_loss(small, tokenizer):
    _, stream = open_stream(small, tokenizer, packing="single", per_step=5)
    sequences = stream.sequences(0)
    whole = stream.batch(sequences, padded=False, multiple=8)
    total = whole.sequence_ends[-1]
    assert total % 8 == 0
    assert 0 <= total - whole.num_tokens < 8
    assert whole.num_targets == int((whole.labels_T != IGNORED).sum())
    shares = [whole.share(held) for held in (((0, 3), (8, total)), ((3, 8),))]
    joined = torch.cat([shares[0].labels_T[:3], shares[1].labels_T, shares[0].labels_T[3:]])
    assert torch.equal(joined, whole.labels_T)
    assert [len(s.tokens_T) for s in shares] == [total - 5, 5]
    assert len(stream.batch([], padded=False, multiple=4).tokens_T) == 4
