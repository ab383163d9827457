"""The guarantees of cluster/rl/state.py."""

import json
from pathlib import Path

import pytest

from cluster.rl.state import StateFile, read_state, state_path
from tests.trainer.rl.conducting.desk import Desk
from trainer.errors import DataError
from trainer.rl.ledger_records import Kept
from trainer.rl.messages import Under
from trainer.run_folder import RunFolder

STEPS, PER_STEP = 30, 8


def written(folder: RunFolder) -> tuple[Desk, list[int]]:
    """A run whose state is written at each step, and the bytes of each line."""
    desk = Desk(prompts_per_step=PER_STEP, max_staleness=0, last_version=STEPS)
    file = StateFile(folder)
    for version in range(STEPS):
        desk.update(version)
        while desk.leases:
            desk.answer(min(desk.leases), version=version)
        file.write(desk.conductor)
        assert read_state(folder) == json.loads(json.dumps(desk.conductor.snapshot()))
        desk.commit(version, saved=version + 1)
    return desk, [len(line) for line in state_path(folder).read_text().splitlines()]


def test_what_is_read_is_what_was_written_last_and_answers_are_written_once(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    assert read_state(folder) is None
    desk, sizes = written(folder)
    assert len(sizes) == STEPS
    payload = len(json.dumps(desk.conductor.snapshot()["ledger"]["records"][-1]["kept"]))
    new_bytes = PER_STEP * payload
    assert max(sizes[2:]) < 2 * new_bytes, "those of one step, and a line for each of others"


def test_a_write_that_never_returned_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    written(folder)
    path = state_path(folder)
    whole = read_state(folder)
    path.write_bytes(path.read_bytes() + b'{"format": 1, "ledger": {"rec')
    assert read_state(folder) == whole


def test_changes_that_outgrow_the_snapshot_give_way_to_another(tmp_path: Path) -> None:
    folder, desk = RunFolder(tmp_path), Desk(max_staleness=0)
    desk.update(0)
    file = StateFile(folder)
    number = min(desk.leases)
    lines = []
    for tokens in range(40):
        kept = Kept(payload={"text": "x" * 100_000 + str(tokens)}, oldest=0, newest=0)
        desk.worker(Under(lease_id=desk.leases[number][1], kept=kept))
        file.write(desk.conductor)
        lines.append(len(state_path(folder).read_text().splitlines()))
    assert lines[:5] == [1, 2, 3, 4, 5]
    assert max(lines) < 20
    assert read_state(folder) == json.loads(json.dumps(desk.conductor.snapshot()))


def test_a_damaged_state_says_what_to_do(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    path = state_path(folder)
    path.parent.mkdir()
    path.write_text('{"ledger"\n')
    with pytest.raises(DataError, match="delete it to ask all prompts"):
        read_state(folder)
