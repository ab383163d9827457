import sysconfig

import pytest

from trainer.data.source import find_source
from trainer.errors import DataError


def names(source):
    return [file.name for file in source.files]


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x")


def test_a_folder_is_read_with_its_subfolders_sorted_without_hidden_ones(tmp_path):
    put(tmp_path, "b.txt", "a/z.py", "a/.hidden.txt", ".git/c.txt", "__pycache__/d.py", "e.bin")
    source = find_source(str(tmp_path), "auto")
    assert source.format == "text"
    assert names(source) == ["a/z.py", "b.txt"]


def test_the_place_of_a_source_is_not_part_of_its_names(tmp_path):
    for place in ("one", "two"):
        put(tmp_path / place, "a.txt", "sub/b.txt")
    assert names(find_source(str(tmp_path / "one"), "auto")) == names(
        find_source(str(tmp_path / "two"), "auto")
    )


@pytest.mark.parametrize(
    ("files", "format", "kept"),
    [
        (["README.md", "d/x.parquet"], "parquet", ["d/x.parquet"]),
        (["README.md", "x.jsonl", "info.json"], "jsonl", ["x.jsonl"]),
        (["a.json", "b.json"], "jsonl", ["a.json", "b.json"]),
        (["a.json", "b.py"], "text", ["a.json", "b.py"]),
    ],
)
def test_auto_goes_by_the_names_in_a_folder(tmp_path, files, format, kept):
    put(tmp_path, *files)
    source = find_source(str(tmp_path), "auto")
    assert (source.format, names(source)) == (format, kept)
    assert names(find_source(str(tmp_path), format)) == kept


def test_one_file_and_a_pattern(tmp_path):
    put(tmp_path, "a/x.jsonl", "b/y.jsonl", "b/z.odd")
    assert names(find_source(str(tmp_path / "b/z.odd"), "auto")) == ["z.odd"]
    assert names(find_source(str(tmp_path / "*/*.jsonl"), "auto")) == ["a/x.jsonl", "b/y.jsonl"]
    assert names(find_source(str(tmp_path / "**/*.jsonl"), "auto")) == ["a/x.jsonl", "b/y.jsonl"]


def test_the_standard_library_is_large_and_free_of_tests_and_packages():
    source = find_source("python_stdlib", "auto")
    parts = {part for name in names(source) for part in name.split("/")[:-1]}
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
    assert sum(file.size_bytes for file in source.files) > 5e6
    assert all(file.path.startswith(sysconfig.get_path("stdlib")) for file in source.files)


@pytest.mark.parametrize(
    ("make", "ask", "message"),
    [
        ([], "nowhere", r"nowhere does not exist .* give a folder"),
        ([], "", r"is an empty folder; put text"),
        (["a.bin", "b.bin", "c"], "", r"no text file \(found \.bin ×2, no suffix ×1\)"),
        (["a.txt"], "*.jsonl", r"no file matches .*\*\.jsonl; correct the pattern"),
        (["a.jsonl.gz"], "a.jsonl.gz", r"a\.jsonl\.gz is compressed; decompress it"),
    ],
)
def test_nothing_to_read_is_an_error_with_a_remedy(tmp_path, make, ask, message):
    put(tmp_path, *make)
    with pytest.raises(DataError, match=message):
        find_source(str(tmp_path / ask), "auto")


def test_linked_folders_are_read_once_and_cycles_end(tmp_path):
    put(tmp_path, "data/a.txt", "far/b.txt", "far/sub/c.txt")
    (tmp_path / "data/link").symlink_to(tmp_path / "far")
    (tmp_path / "data/link2").symlink_to(tmp_path / "far/sub")
    (tmp_path / "far/back").symlink_to(tmp_path / "data")
    found = find_source(str(tmp_path / "data"), "auto")
    assert names(found) == ["a.txt", "link/b.txt", "link/sub/c.txt"]
