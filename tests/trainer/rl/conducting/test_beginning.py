"""The guarantees of trainer/rl/conducting/beginning.py."""

import json

import pytest

from trainer.rl.conducting.beginning import STATE_FORMAT, begin_ledger
from trainer.rl.ledger import PromptLedger
from trainer.rl.ledger_records import Kept


def state(steps=3, kept_from=0):
    ledger = PromptLedger()
    for step in range(steps):
        leases = [ledger.lease("w", version=step, now_s=0.0, room=9) for _ in range(3)]
        for lease in leases[:2]:
            assert lease is not None
            ledger.finish(lease.lease_id, Kept(payload={"x": 1}, oldest=step, newest=step))
        ledger.take([lease.number for lease in leases[:2] if lease is not None])
        ledger.commit(step)
    ledger.forget(kept_from)
    plain = {"format": STATE_FORMAT, "ledger": ledger.snapshot(), "channels": 4}
    return json.loads(json.dumps(plain))


def begin(given, version, prompts=None):
    return begin_ledger(given, version=version, prompts=prompts, prompts_per_step=2, lease_s=9.0)


def next_number(ledger, version):
    lease = ledger.lease("w", version=version, now_s=0.0, room=9)
    return None if lease is None else lease.number


@pytest.mark.parametrize("version", [1, 2, 3])
def test_where_the_snapshot_reaches_the_version_the_run_goes_on_from_it(version):
    ledger, reason = begin(state(kept_from=1), version)
    assert reason == ""
    assert (ledger.committed, ledger.lease_s) == (version, 9.0)
    assert len(ledger.finished()) == (0 if version == 3 else 2), "not what later versions drew"


def test_a_fresh_run_begins_with_the_first_prompt():
    ledger, reason = begin(None, 0)
    assert (reason, next_number(ledger, 0)) == ("", 0)


@pytest.mark.parametrize(
    ("given", "version", "first", "words"),
    [
        (state(kept_from=2), 1, 9, "cannot be gone back to"),
        (state(), 5, 10, "cannot be gone back to"),
        (None, 4, 8, "no state of the prompts"),
        ({"format": 99}, 4, 8, "has format 99"),
        ({"format": STATE_FORMAT, "ledger": {"format": 1}}, 4, 8, "cannot be restored"),
    ],
)
def test_where_it_does_not_no_prompt_that_a_step_may_have_trained_comes_again(
    given, version, first, words
):
    ledger, reason = begin(given, version)
    assert words in reason
    assert next_number(ledger, version) == first
    assert ledger.committed == version


def test_leases_go_on_where_earlier_ones_ended():
    ledger, _ = begin(state(kept_from=2), 1)
    lease = ledger.lease("w", version=1, now_s=0.0, room=1)
    assert lease is not None
    assert lease.lease_id == 9


def test_a_finite_task_does_not_begin_beyond_its_end():
    ledger, _ = begin(None, 9, prompts=12)
    assert ledger.exhausted
    assert next_number(ledger, 9) is None
