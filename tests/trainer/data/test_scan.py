import json

import pytest

from trainer.data import scan
from trainer.data.scan import Scanner
from trainer.data.source import find_source


def run(path, *, field="text", block_bytes=100, max_bytes=10**6):
    return Scanner(find_source(str(path), "auto"), field, block_bytes, max_bytes).run()


def write_lines(path, lengths, *, end=b"\n"):
    lines = [b"x" * n for n in lengths]
    path.write_bytes(b"\n".join(lines) + end)
    return lines


def lines_of(path, found):
    data = path.read_bytes()
    taken = {}
    for span in found.blocks.spans:
        pieces = data[span["start"] : span["stop"]].split(b"\n")
        pieces = pieces[:-1] if not pieces[-1] else pieces
        taken |= dict(enumerate(pieces, int(span["first"])))
    return taken


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("piece_bytes", [7, 64, 10**6])
@pytest.mark.parametrize("block_bytes", [1, 60, 10**6])
def test_every_line_is_in_one_block_with_its_number(
    tmp_path, monkeypatch, end, piece_bytes, block_bytes
):
    monkeypatch.setattr(scan, "PIECE_BYTES", piece_bytes)
    path = tmp_path / "a.jsonl"
    lines = write_lines(path, [5, 0, 30, 12, 1, 0, 44, 8], end=end)
    found = run(path, block_bytes=block_bytes)
    assert lines_of(path, found) == dict(enumerate(lines, 1))
    spans = found.blocks.spans
    assert (spans["stop"][:-1] <= spans["start"][1:]).all()


@pytest.mark.parametrize("piece_bytes", [16, 10**6])
def test_lines_over_the_limit_are_named_and_left_out(tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr(scan, "PIECE_BYTES", piece_bytes)
    path = tmp_path / "a.jsonl"
    lines = write_lines(path, [5, 90, 30, 91, 92, 8])
    found = run(path, block_bytes=1000, max_bytes=50)
    assert [(t.line, t.size_bytes) for t in found.too_large] == [(2, 91), (4, 92), (5, 93)]
    assert lines_of(path, found) == {n: lines[n - 1] for n in (1, 3, 6)}


def test_a_huge_sparse_file_is_refused_by_its_size_alone(tmp_path):
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(10**13)
    (tmp_path / "small.txt").write_text("small")
    found = run(tmp_path)
    assert [(t.name, t.line, t.size_bytes) for t in found.too_large] == [("huge.txt", 0, 10**13)]
    assert found.blocks.spans.tolist() == [(1, 0, 5, 0)]


def test_the_fingerprint_is_of_names_and_content(tmp_path):
    def fingerprint(place, name="a.txt", text="one"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / name).write_text(text)
        return run(tmp_path / place).fingerprint

    first = fingerprint("p")
    assert fingerprint("q") == first
    assert fingerprint("r", text="two") != first
    assert fingerprint("s", name="b.txt") != first


def test_a_change_inside_a_large_file_is_seen_at_the_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "WHOLE_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 10_000_000)
    first = run(path, max_bytes=10**8).fingerprint
    path.write_bytes(b"a" * 9_999_999 + b"b")
    assert run(path, max_bytes=10**8).fingerprint != first


def test_json_lines_of_several_files_share_blocks(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    found = run(tmp_path, block_bytes=10**6)
    assert found.blocks.count == 1
    assert [int(s["file"]) for s in found.blocks.spans] == [0, 1, 2]
