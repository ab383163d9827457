"""Which snapshots are of a run, over its starts."""

from trainer.keeping.record import Record, next_start, read_record, write_record


def test_every_start_has_a_higher_generation_and_the_same_run():
    first = next_start(None, token="a" * 32, forget=True)
    second = next_start(first, token="b" * 32, forget=False)
    assert first == Record(run="a" * 32, generation=1, valid_from=1)
    assert second == Record(run="a" * 32, generation=2, valid_from=1)


def test_what_a_start_forgets_stays_forgotten():
    record = next_start(None, token="a" * 32, forget=False)
    for forget in (False, True, False):
        record = next_start(record, token="", forget=forget)
    assert record == Record(run="a" * 32, generation=4, valid_from=3)


def test_another_folder_is_another_run(tmp_path):
    path = tmp_path / "run" / "snapshots.json"
    assert read_record(path) is None
    record = next_start(None, token="c" * 32, forget=False)
    write_record(path, record)
    assert read_record(path) == record
    path.write_text('{"run": "c')
    assert read_record(path) is None
    path.write_text('{"other": 1}')
    assert read_record(path) is None
