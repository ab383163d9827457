import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.index import open_index
from trainer.data.scan import Scanner
from trainer.errors import DataError, RecipeError, ResourceError


def test_an_unchanged_source_is_scanned_once(text_source, data_config, monkeypatch):
    first = open_index(data_config(text_source))
    monkeypatch.setattr(Scanner, "run", lambda self: pytest.fail("scanned again"))
    again = open_index(data_config(text_source))
    assert again.paths == first.paths
    assert again.scan.fingerprint == first.scan.fingerprint
    assert again.blocks.spans.tolist() == first.blocks.spans.tolist()
    assert again.blocks.ends.tolist() == first.blocks.ends.tolist()


def test_a_changed_file_is_scanned_again(text_source, data_config):
    first = open_index(data_config(text_source))
    (text_source / "005.txt").write_text("something else entirely")
    assert open_index(data_config(text_source)).scan.fingerprint != first.scan.fingerprint


def test_a_touched_file_keeps_the_fingerprint(text_source, data_config):
    first = open_index(data_config(text_source))
    os.utime(text_source / "005.txt", (1, 1))
    assert open_index(data_config(text_source)).scan.fingerprint == first.scan.fingerprint


def test_a_document_over_the_limit_is_fatal_or_skipped_by_recipe(tmp_path, data_config):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "y" * n}) for n in (5, 500, 6)))
    with pytest.raises(
        DataError, match=r"a\.jsonl:2 in .* 513 bytes, over data\.max_document_bytes=100.*skip"
    ):
        open_index(data_config(path, max_document_bytes=100))
    index = open_index(data_config(path, max_document_bytes=100, on_bad="skip"))
    assert [document.line for document in index.scan.too_large] == [2]
    assert index.blocks.count == 1


def test_a_source_without_a_document_is_refused(tmp_path, data_config):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no document: 1 file\(s\), all empty"):
        open_index(data_config(tmp_path / "empty.txt"))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds no document"):
        open_index(data_config(tmp_path / "a.parquet"))


@pytest.mark.parametrize("kind", ["chat", "answers"])
def test_what_has_parts_is_not_read_from_text_files(text_source, data_config, kind):
    with pytest.raises(RecipeError, match=rf"data\.kind={kind} reads JSON lines or Parquet"):
        open_index(data_config(text_source, kind=kind))


def test_a_cache_that_cannot_be_written_is_a_matter_of_resources(text_source, tmp_path):
    from trainer.data.config import DataConfig

    (tmp_path / "file").write_text("")
    config = DataConfig(source=str(text_source), cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(ResourceError, match=r"cannot be written .*point data\.cache_dir"):
        open_index(config)
