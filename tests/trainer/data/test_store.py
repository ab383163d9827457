import os

import numpy as np
import pytest

from trainer.data.documents import Place
from trainer.data.encoding import Encoded
from trainer.data.store import RowTable, TokenStore
from trainer.errors import DataError


def documents(masked, top=300):
    rng = np.random.default_rng(0)
    sizes = [3, 9, 2]
    return [
        Encoded(Place(n, n + 5), rng.integers(0, top, size), rng.random(size) < 0.5)
        if masked
        else Encoded(Place(n, n + 5), rng.integers(0, top, size), None)
        for n, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("wide", "top"), [(False, 65536), (True, 200_000)])
def test_a_block_is_read_as_it_was_written(tmp_path, masked, wide, top):
    store = TokenStore(tmp_path, 2000)
    written = documents(masked, top)
    store.write(1234, written, refused=4, wide=wide)
    block = store.read(1234)
    assert block.tokens.tolist() == np.concatenate([d.tokens for d in written]).tolist()
    assert block.tokens.itemsize == (4 if wide else 2)
    assert block.offsets.tolist() == [0, 3, 12, 14]
    assert block.lengths_D.tolist() == [2, 8, 1]
    assert block.places.tolist() == [[0, 5], [1, 6], [2, 7]]
    assert block.refused == 4
    if masked:
        assert block.mask.tolist() == np.concatenate([d.mask for d in written]).tolist()
    else:
        assert block.mask is None


def test_a_block_may_be_empty(tmp_path):
    store = TokenStore(tmp_path, 1)
    assert not store.has(0)
    store.write(0, [], refused=2, wide=False)
    assert store.has(0)
    assert len(store.read(0).lengths_D) == 0


def test_writing_twice_gives_the_same_bytes(tmp_path):
    store = TokenStore(tmp_path, 1)
    contents = set()
    for _ in range(2):
        store.write(0, documents(True), refused=0, wide=False)
        contents.add(store.path(0).read_bytes())
    assert len(contents) == 1
    assert list(store.path(0).parent.iterdir()) == [store.path(0)]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:20], lambda b: b"", None])
def test_a_damaged_block_is_named(tmp_path, damage):
    store = TokenStore(tmp_path, 1)
    store.write(0, documents(False), refused=0, wide=False)
    path = store.path(0)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"000000000\.tokens is missing or damaged; delete"):
        store.read(0)


def test_the_table_starts_unknown_and_keeps_what_is_entered(tmp_path):
    store = TokenStore(tmp_path, 5)
    table = RowTable(store, 32, "split")
    table.create()
    assert table.read().tolist() == [(-1, -1)] * 5
    table.write(3, rows=7, skipped=1)
    table.create()
    assert table.read().tolist() == [(-1, -1)] * 3 + [(7, 1), (-1, -1)]
    other = RowTable(store, 64, "split")
    other.create()
    assert other.read().tolist() == [(-1, -1)] * 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows-split-32", "rows-split-64"]


def test_a_table_made_by_another_container_meanwhile_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 7)
    theirs = RowTable(TokenStore(tmp_path, 2), 32, "split")
    link = os.link

    def slow_link(fresh, path):
        monkeypatch.setattr(os, "link", link)
        theirs.create()
        theirs.write(1, rows=3, skipped=0)
        link(fresh, path)

    monkeypatch.setattr(os, "link", slow_link)
    RowTable(TokenStore(tmp_path, 2), 32, "split").create()
    assert theirs.read().tolist() == [(-1, -1), (3, 0)]
    assert [path.name for path in tmp_path.iterdir()] == ["rows-split-32"]
