"""Answers that the ledger lets go of, and what goes back to them."""

from trainer.rl.ledger import PromptLedger
from trainer.rl.ledger_records import Kept


def trained(steps=3):
    """A prompt per step, each drawn by version 0."""
    ledger = PromptLedger()
    for step in range(steps):
        lease = ledger.lease("w", version=0, now_s=0.0, room=1)
        assert lease is not None
        ledger.finish(lease.lease_id, Kept(payload={"x": step}, oldest=0, newest=0))
        ledger.take([lease.number])
        ledger.commit(step)
    return ledger


def test_what_is_let_go_of_begins_again_and_the_rest_keeps_its_answers():
    ledger = trained()
    ledger.lighten(2)
    ledger.rewind(1)
    assert ledger.counts() == {"trained": 1, "due": 1, "finished": 1, "forgotten": 0}
    (kept,) = [record.kept for record in ledger.finished()]
    assert kept is not None
    assert kept.payload == {"x": 2}
    lease = ledger.lease("w", version=1, now_s=0.0, room=1)
    assert lease is not None
    assert (lease.number, lease.kept) == (1, None)


def test_snapshots_hold_no_answers_that_were_let_go_of():
    ledger = trained()
    ledger.lighten(3)
    records = ledger.snapshot()["records"]
    assert [record["kept"]["payload"] for record in records] == [{}, {}, {}]
    again = PromptLedger.restore(ledger.snapshot(), step=3)
    assert again.counts() == {"trained": 3, "forgotten": 0}


def test_answers_are_in_the_changes_once():
    ledger = trained(1)
    lease = ledger.lease("w", version=1, now_s=0.0, room=1)
    assert lease is not None
    known = ledger.records
    assert ledger.snapshot(known)["records"] == []
    ledger.finish(lease.lease_id, Kept(payload={"x": 1}, oldest=1, newest=1))
    (finished,) = ledger.snapshot(known)["records"]
    assert finished["kept"]["payload"] == {"x": 1}
    known = ledger.records
    ledger.take([lease.number])
    (taken,) = ledger.snapshot(known)["records"]
    assert (taken["number"], taken["state"]) == (lease.number, "taken")
    assert "kept" not in taken


def test_leases_are_numbered_on_over_a_snapshot():
    ledger = PromptLedger.restore(trained().snapshot(), step=3)
    lease = ledger.lease("w", version=3, now_s=0.0, room=1)
    assert lease is not None
    assert lease.lease_id == 3


def test_a_dropped_prompt_keeps_no_answers():
    ledger = PromptLedger()
    lease = ledger.lease("w", version=0, now_s=0.0, room=1)
    assert lease is not None
    done = ledger.finish(lease.lease_id, Kept(payload={"x": 1}, oldest=0, newest=0))
    assert done is not None
    ledger.drop(done.number, "equal")
    assert ledger.snapshot()["records"][0]["kept"]["payload"] == {}
