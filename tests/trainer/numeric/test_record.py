"""Rollbacks are remembered, and what they left behind is passed over."""

from pathlib import Path

import pytest

from trainer.checkpoint.agreement import RanksFailed
from trainer.checkpoint.manifest import Manifest
from trainer.errors import DataError
from trainer.numeric.jumps import Rollback
from trainer.numeric.record import Admitted, joined, read_rollbacks, write_rollbacks

FIRST = Rollback(from_step=9, to_step=5)
SECOND = Rollback(from_step=20, to_step=15)


class State:
    """A saved state of which only the description counts."""

    path = Path("step")
    place = "disk"

    def __init__(self, step: int, meta: dict) -> None:
        self._manifest = Manifest(step=step, files={}, tensors={}, meta=meta)

    def prepare(self, state, group) -> Manifest:
        return self._manifest

    def opened(self):
        raise AssertionError


def test_rollbacks_are_kept_in_the_run_folder(tmp_path):
    path = tmp_path / "rollbacks.json"
    assert read_rollbacks(path) == ()
    write_rollbacks(path, joined([SECOND, FIRST], [FIRST]))
    assert read_rollbacks(path) == (FIRST, SECOND)
    path.write_text("{")
    with pytest.raises(DataError, match="which steps must not be trained on again"):
        read_rollbacks(path)


def test_states_that_a_rollback_left_behind_are_passed_over():
    made = {"numeric": {"rollbacks": [[9, 5]]}}
    for step, meta in ((5, {}), (9, made), (12, made), (3, {"numeric": {"rollbacks": []}})):
        manifest = Admitted(State(step, meta), [FIRST]).prepare({}, None)
        assert manifest.step == step
    for step, meta in ((8, {}), (9, {}), (18, made)):
        with pytest.raises(RanksFailed, match="left this behind"):
            Admitted(State(step, meta), [FIRST, SECOND]).prepare({}, None)
